"""``potq.serve.places``: where tokens begin, whatever the prompt's say beside the text."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")

from potq.serve.places import Places

BEGIN = 1


@pytest.mark.parametrize(
    ("echoed", "tokens", "offsets"),
    [
        ("", [b"a", b"\xc3", b"\xa9", b" ", b"b"], [0, 1, 1, 2, 3]),
        ("", [b" the", b" cat"], [0, 4]),
        ("", [b"a", b"<s>", b"b"], [0, 1, 1]),
        ("the cat", [b"<s>", b" the", b" cat", b" sat", b"."], [0, 0, 3, 7, 11]),
        ("<s>a", [b"<s>", b"a", b"b"], [0, 3, 4]),
        ("\u20ac!", [b"\xe2\x82", b"\xac", b"!", b"x"], [0, 0, 1, 2]),
    ],
)
def test_where_tokens_begin(echoed: str, tokens: list[bytes], offsets: list[int]) -> None:
    places = Places(echoed, {BEGIN})
    assert [places.take(BEGIN if own == b"<s>" else 5, own) for own in tokens] == offsets
