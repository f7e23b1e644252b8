"""What training reads: documents as token sequences of one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potq.data.tokens import token_parts
from potq.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pack(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int, *, limit: int | None = None) -> Tensor:
    """The documents' tokens, one after another, cut into rows: int64 ``(n, length)``, the first ``limit`` or all.

    Every document is tokenized by itself, with the special tokens that the tokenizer adds to it, and ends with the EOS token
    if there is one. Blank documents are left out, and so is what does not fill the last row.

    Raises:
        DataError: not enough text for one row; rows of less than 2 tokens.
    """
    if length < 2:
        raise DataError(f"invalid sequence length {length}; use at least 2 tokens")
    written = [document for document in documents if document.strip()]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts, count = [torch.empty(0, dtype=torch.long)], 0
    for part in token_parts(tokenizer, written, end):
        parts.append(part)
        count += len(part)
        if limit is not None and count >= limit * length:
            break  # the rest of a large dataset is not tokenized in vain
    tokens = torch.cat(parts)
    rows = min(len(tokens) // length, len(tokens) if limit is None else limit)
    if not rows:
        raise DataError(
            f"the text has {len(tokens)} tokens in {len(written)} documents, less than one sequence of {length}; "
            "give more text or a smaller length"
        )
    return tokens[: rows * length].view(rows, length)
