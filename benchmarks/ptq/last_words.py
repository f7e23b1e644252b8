"""A task without shots: a text stops before the last word of a sentence, which the model has to say.

A word counts as right if every token of it is the likeliest, as in LAMBADA (1606.06031). Sentences are taken from text that
a model is evaluated on, so nothing has to be downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from potq.data.tokens import tokenize

QUESTIONS = 300
_LAST = re.compile(r" (\w+) ?\.(?=\s|$)")
_SHORTEST, _LONGEST = 200, 500  # characters before the word

Question = tuple[Tensor, Tensor]
"""The tokens of a text, and those that its last word adds. A tokenizer may join words: then they begin before the word."""


def questions(tokenizer: Any, documents: Sequence[str], count: int = QUESTIONS) -> list[Question]:
    """Taken evenly from all sentences that end far enough into a document.

    Raises:
        ValueError: the documents have fewer such sentences.
    """
    found = [question for document in documents for question in _questions(tokenizer, document)]
    if len(found) < count:
        raise ValueError(f"the text has {len(found)} sentences to ask about, not {count}")
    return [found[index * len(found) // count] for index in range(count)]


def _questions(tokenizer: Any, document: str) -> Iterator[Question]:
    for end in _LAST.finditer(document):
        if _SHORTEST <= end.start() <= _LONGEST:
            before, whole = (tokenize(tokenizer, document[:stop]) for stop in (end.start(), end.end(1)))
            shorter = min(len(before), len(whole) - 1)
            alike = int((before[:shorter] == whole[:shorter]).long().cumprod(0).sum())
            yield whole[:alike], whole[alike:]


@torch.no_grad()
def right(model: Any, asked: Sequence[Question]) -> list[bool]:
    """Of every question, whether the model says the word."""
    found = []
    for before, word in asked:
        text = torch.cat([before, word[:-1]])
        likeliest = model(text[None], use_cache=False).logits[0, len(before) - 1 :].argmax(-1)
        found.append(bool((likeliest == word).all()))
    return found
