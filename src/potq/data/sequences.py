"""What training reads: documents as token sequences of one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potq.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOGETHER = 256  # documents; a tokenizer's own notes take a hundred bytes a token, so not all at once


def pack(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int) -> Tensor:
    """The documents' tokens, one after another, cut into rows: int64 ``(n, length)``.

    Every document is tokenized by itself, with the special tokens that the tokenizer adds to it, and ends with the EOS token
    if there is one. Blank documents are left out, and so is what does not fill the last row.

    Raises:
        DataError: not enough text for one row; rows of less than 2 tokens.
    """
    if length < 2:
        raise DataError(f"a sequence of {length} tokens predicts nothing; use a length of at least 2")
    written = [document for document in documents if document.strip()]
    tokens = torch.cat([torch.empty(0, dtype=torch.long), *_tokens(tokenizer, written)])
    rows = len(tokens) // length
    if not rows:
        raise DataError(
            f"the text has {len(tokens)} tokens in {len(written)} documents, less than one sequence of {length}; "
            "give more text or a smaller length"
        )
    return tokens[: rows * length].view(rows, length)


def _tokens(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> Iterator[Tensor]:
    """Token ids of some documents at a time, 1-D."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for start in range(0, len(documents), _TOGETHER):
        found: list[int] = []
        for ids in tokenizer(documents[start : start + _TOGETHER], verbose=False)["input_ids"]:
            found += ids if ids[-1:] == end else ids + end
        yield torch.tensor(found, dtype=torch.long)
