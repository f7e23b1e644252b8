"""Documents packed into rows: nothing is lost but the last tokens, and every document ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import potq
from potq.data import tokens
from potq.data.sequences import pack
from potq.errors import DataError


class Letters:
    """A tokenizer of one token a character; ``bos`` opens every document, and "." is the token 46 that ``eos`` may be."""

    def __init__(self, bos: int | None = None, eos: int | None = None) -> None:
        self.opening, self.eos_token_id = [] if bos is None else [bos], eos

    def __call__(self, texts: list[str], verbose: bool) -> dict[str, Any]:
        return {"input_ids": [self.opening + [ord(letter) for letter in text] for text in texts]}


def packed(documents: list[str], length: int, bos: int | None = None, eos: int | None = None) -> list[int]:
    tokenizer: Any = Letters(bos, eos)
    found = pack(tokenizer, documents, length)
    assert found.dtype == torch.int64
    assert found.shape[1] == length
    return found.flatten().tolist()


TEXTS = st.lists(st.text("abc. ", max_size=12), max_size=12)


@given(TEXTS, st.integers(2, 9), st.sampled_from([None, 1]), st.sampled_from([None, 46]))
def test_every_document_is_there_and_ends(documents: list[str], length: int, bos: int | None, eos: int | None) -> None:
    expected: list[int] = []
    written = [document for document in documents if document.strip()]
    for document in written:
        ids = ([] if bos is None else [bos]) + [ord(letter) for letter in document]
        expected += ids if eos is None or ids[-1] == eos else [*ids, eos]
    if len(expected) < length:
        message = (
            f"has {len(expected)} tokens in {len(written)} documents, less than one sequence of {length}; give more text"
        )
        with pytest.raises(DataError, match=message):
            packed(documents, length, bos, eos)
        return
    assert packed(documents, length, bos, eos) == expected[: len(expected) // length * length]


def test_rows_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_TOGETHER", 2)
    assert packed(["ab", "c", "def.", "gh"], 3, eos=46) == [ord(letter) for letter in "ab.c.def.gh."]


def test_a_real_tokenizer(tiny_folder: Path) -> None:
    tokenizer = potq.load_tokenizer(tiny_folder)
    documents = ["the cat sat", "on the mat<|end|>", "  \n", "then the other cat"]
    found = pack(tokenizer, documents, 2).flatten()
    assert tokenizer.decode(found) in "the cat sat<|end|>on the mat<|end|>then the other cat<|end|>"
    assert (found == tokenizer.eos_token_id).sum() >= 2


@pytest.mark.parametrize("length", [1, 0, -3])
def test_a_length_that_predicts_nothing(length: int) -> None:
    with pytest.raises(DataError, match=f"invalid sequence length {length}; use at least 2 tokens"):
        packed(["the cat"], length)
