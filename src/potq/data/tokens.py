"""Text as tokens, and windows of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potq.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The whole text as one 1-D tensor of token ids, with whatever special tokens the tokenizer adds to a text."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def choose_window(model: PreTrainedModel, window: int | None, default: int) -> int:
    """Tokens per window: ``window``, or if it is None, ``default`` or the model's limit, whichever is less.

    Raises:
        DataError: less than 2 tokens, or more than the model's limit.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    window = window if window is not None else min(default, limit or default)
    if window < 2:
        raise DataError(f"a window of {window} tokens predicts nothing; use at least 2")
    if limit is not None and window > limit:
        raise DataError(f"windows of {window} tokens exceed the model's limit of {limit}; use a window of {limit}")
    return window


def calibration_windows(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], *, window: int, windows: int, seed: int
) -> Tensor:
    """``windows`` random windows of the documents' tokens, int64 ``(windows, window)``, in the order of the text.

    Every document is tokenized by itself, with the special tokens that the tokenizer adds to it, and all are joined. The
    windows do not overlap; every way to place them is equally likely. Text that has no more than so many gives all its whole
    windows, one right after the other.

    Raises:
        DataError: the text has less than one window; ``windows`` is not positive.
    """
    if windows < 1:
        raise DataError(f"{windows} windows of calibration text teach nothing; use at least 1")
    written = [document for document in documents if document.strip()]
    ids = chain.from_iterable(tokenizer(written, verbose=False)["input_ids"]) if written else ()
    tokens = torch.tensor(list(ids), dtype=torch.long)
    whole = len(tokens) // window
    if not whole:
        raise DataError(
            f"the calibration text has {len(tokens)} tokens, less than one window of {window}; "
            "give more text or a smaller window"
        )
    if whole <= windows:
        return tokens[: whole * window].view(whole, window)
    generator = torch.Generator().manual_seed(seed)
    # with all but one token of each window taken out, windows that do not overlap are distinct tokens of what is left
    left = len(tokens) - windows * (window - 1)
    offsets = torch.randperm(left, generator=generator)[:windows].sort().values + torch.arange(windows) * (window - 1)
    return tokens[offsets[:, None] + torch.arange(window)]
