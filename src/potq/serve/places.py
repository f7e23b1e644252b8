"""Where tokens begin in a text."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Set as AbstractSet

_Decoder = getincrementaldecoder("utf-8")


class Places:
    """Counts the characters of a text, of which one may need several tokens.

    Args:
        echoed: the prompt, if the text begins with it. Its tokens may be more than it says: one that begins every text, a
            space before the first word.
        special: tokens that are no text, but where the prompt spells them.
    """

    def __init__(self, echoed: str, special: AbstractSet[int]) -> None:
        self._echoed, self._special = echoed, special
        self._decoder = _Decoder(errors="replace")
        self._at = 0

    def take(self, token: int, own: bytes) -> int:
        """Where the next token begins, whose bytes are ``own``."""
        at, text = self._at, self._decoder.decode(own)
        if not self._echoed.startswith(text, at):
            text = "" if token in self._special else text
            if self._echoed.startswith(text.lstrip(" "), at) and at < len(self._echoed):
                text = text.lstrip(" ")
        self._at += len(text)
        return at
