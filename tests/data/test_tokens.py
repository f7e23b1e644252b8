"""Tokens of a text, and windows of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import potq
from potq.data import tokens
from potq.data.tokens import calibration_windows, choose_window, token_parts, tokenize
from potq.errors import DataError


class Letters:
    """A tokenizer of one token a character; ``bos`` opens every document."""

    def __init__(self, bos: int | None = None) -> None:
        self.opening = [] if bos is None else [bos]

    def __call__(self, texts: Any, verbose: bool, add_special_tokens: bool = True) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": self.opening * add_special_tokens + [ord(letter) for letter in texts]}
        return {"input_ids": [self(text, verbose)["input_ids"] for text in texts]}


def counted(length: int) -> str:
    """A text whose tokens are all different: 1000, 1001, ..."""
    return "".join(chr(1000 + i) for i in range(length))


def windows(documents: list[str], window: int, count: int, seed: int = 0, bos: int | None = None) -> Tensor:
    tokenizer: Any = Letters(bos)
    return calibration_windows(tokenizer, documents, window=window, windows=count, seed=seed)


@pytest.mark.parametrize("bos", [None, 7])
def test_long_documents_are_tokenized_in_pieces(bos: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut where lines end; special tokens open the document, not its pieces; what ends a document does so once."""
    monkeypatch.setattr(tokens, "_PIECE", 10)
    lengths: list[int] = []

    class Counting(Letters):
        def __call__(self, texts: Any, verbose: bool, add_special_tokens: bool = True) -> dict[str, Any]:
            lengths.extend([len(texts)] if isinstance(texts, str) else [sum(map(len, texts))])
            return super().__call__(texts, verbose, add_special_tokens)

    tokenizer: Any = Counting(bos)
    documents = ["short", "one line\nanother\n" + "x" * 23 + "\nend", "last"]
    opening = [] if bos is None else [bos]
    expected = [token for document in documents for token in [*opening, *map(ord, document), 46]]
    assert torch.cat(list(token_parts(tokenizer, documents, [46]))).tolist() == expected
    assert max(lengths) <= 10
    assert tokenize(tokenizer, documents[1]).tolist() == [*opening, *map(ord, documents[1])]


def test_of_very_much_text_a_part_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_PIECE", 100)
    monkeypatch.setattr(tokens, "_ENOUGH", 50)
    documents = ["".join(chr(1000 + 400 * number + i) for i in range(400)) for number in range(20)]
    read: list[str] = []

    class Reading(Letters):
        def __call__(self, texts: Any, verbose: bool, add_special_tokens: bool = True) -> dict[str, Any]:
            read.extend([] if isinstance(texts, str) else texts)
            return super().__call__(texts, verbose, add_special_tokens)

    tokenizer: Any = Reading()
    found = calibration_windows(tokenizer, documents, window=5, windows=4, seed=0)
    assert sum(map(len, read)) == 4 * 5 * 50
    assert read == sorted(read)
    same = calibration_windows(tokenizer, documents, window=5, windows=4, seed=0)
    assert torch.equal(found, same)
    assert not torch.equal(found, calibration_windows(tokenizer, documents, window=5, windows=4, seed=1))


def test_tokenize_is_one_text(packed_folder: Path) -> None:
    tokenizer = potq.load_tokenizer(packed_folder)
    text = "the cat\n\n" * 1000
    tokens = tokenize(tokenizer, text)
    assert tokens.ndim == 1
    assert tokens.dtype == torch.long
    assert tokenizer.decode(tokens) == text
    assert len(tokenize(tokenizer, "")) == 0


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 12), st.integers(0, 2**63 - 1))
def test_windows_are_slices_that_do_not_overlap(length: int, window: int, count: int, seed: int) -> None:
    whole = length // window
    if not whole:
        with pytest.raises(DataError, match=f"has {length} tokens, less than one window of {window}"):
            windows([counted(length)], window, count, seed)
        return
    state = torch.get_rng_state()
    found = windows([counted(length)], window, count, seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.shape == (min(whole, count), window)
    assert found.dtype == torch.int64
    assert torch.equal(found - found[:, :1], torch.arange(window).expand_as(found))
    assert 1000 <= int(found.min()) <= int(found.max()) < 1000 + length
    assert (found[1:, 0] - found[:-1, 0] >= window).all()
    if whole <= count:
        assert torch.equal(found.flatten(), 1000 + torch.arange(whole * window))
    assert torch.equal(found, windows([counted(length)], window, count, seed))


@pytest.mark.parametrize("count", [2, 3])
def test_text_just_long_enough_gives_consecutive_windows(count: int) -> None:
    for seed in range(8):
        assert (windows([counted(11)], 4, count, seed)[:, 0] - 1000).tolist() == [0, 4]


def test_every_placement_is_drawn_equally_often() -> None:
    """Two windows of 2 in 6 tokens can stand in 6 ways."""
    text = counted(6)
    drawn = [tuple((windows([text], 2, 2, seed)[:, 0] - 1000).tolist()) for seed in range(1200)]
    counts = {placement: drawn.count(placement) for placement in set(drawn)}
    assert set(counts) == {(0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 4)}
    assert all(abs(count - 200) < 60 for count in counts.values())


def test_documents_are_joined_each_with_its_special_tokens() -> None:
    found = windows(["ab", "", " \n", "cde"], 7, 1, bos=1)
    assert found.tolist() == [[1, *map(ord, "ab"), 1, *map(ord, "cde")]]


def test_a_real_tokenizer(packed_folder: Path) -> None:
    tokenizer: Any = potq.load_tokenizer(packed_folder)
    documents = ["the cat sat", "on the mat, zwölf mal"]
    stream = torch.cat([tokenize(tokenizer, document) for document in documents])
    found = calibration_windows(tokenizer, documents, window=len(stream), windows=1, seed=0)
    assert torch.equal(found[0], stream)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    found = calibration_windows(tokenizer, documents, window=len(stream) + 2, windows=1, seed=0)
    assert (found == 0).sum() == 2
    assert found[0, 0] == 0


@pytest.mark.parametrize("documents", [[], [""], ["", " \n"]])
def test_no_documents(documents: list[str]) -> None:
    with pytest.raises(DataError, match="the calibration text has 0 tokens, less than one window of 4; give more text or"):
        windows(documents, 4, 1)


@pytest.mark.parametrize("count", [0, -1])
def test_no_windows(count: int) -> None:
    with pytest.raises(DataError, match=f"invalid number of calibration windows {count}"):
        windows([counted(10)], 4, count)


def test_choosing_a_window(tiny_model: Any) -> None:
    assert choose_window(tiny_model, None, 512) == 128
    assert choose_window(tiny_model, None, 64) == 64
    assert choose_window(tiny_model, 128, 64) == 128
    boundless: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=SimpleNamespace))
    assert choose_window(boundless, None, 512) == 512
    assert choose_window(boundless, 10_000, 512) == 10_000
