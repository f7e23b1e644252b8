"""Questions about last words: where texts stop, and what counts as an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.ptq.last_words import questions, right

WORDS = ["<pad>", "cat", "sat", ".", "the", "mat"]


class Spaced:
    """A tokenizer of single words."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[WORDS.index(word) for word in text.replace(".", " .").split()] for text in texts]}


def said(word: int) -> Any:
    """A model that always says one word."""

    def model(tokens: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.nn.functional.one_hot(torch.full_like(tokens, word), len(WORDS)).float())

    return model


DOCUMENT = "the cat sat " * 20 + "the mat. " + "the cat sat . " * 3 + "the " * 100 + "cat."


def test_sentences_that_end_far_enough_into_a_document() -> None:
    asked = questions(Spaced(), [DOCUMENT, "the cat sat."], 4)
    assert [[WORDS[token] for token in word] for _, word in asked] == [["mat"], ["sat"], ["sat"], ["sat"]]
    assert [len(text) for text, _ in asked] == [61, 65, 69, 73]
    assert [WORDS[token] for token in asked[0][0][-2:]] == ["sat", "the"]


def test_too_short_a_text() -> None:
    with pytest.raises(ValueError, match="4 sentences to ask about, not 5"):
        questions(Spaced(), [DOCUMENT], 5)


def test_a_word_is_right_if_all_its_tokens_are_the_likeliest() -> None:
    text = torch.tensor([4, 1])
    asked = [
        (text, torch.tensor([2])),
        (text, torch.tensor([2, 2])),
        (text, torch.tensor([2, 5])),
        (text, torch.tensor([5])),
    ]
    assert right(said(2), asked) == [True, True, False, False]
    assert right(said(5), asked) == [False, False, False, True]
