"""Text as tokens, and windows of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from potq.errors import DataError
from potq.nn.properties import longest_text, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# a tokenizer's own notes take a hundred bytes a character, so not all at once
_TOGETHER = 256  # documents
_PIECE = 1 << 24  # characters
_ENOUGH = 1024  # characters for every token of calibration that is wanted


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The whole text as one 1-D tensor of token ids, with whatever special tokens the tokenizer adds to a text."""
    return torch.cat([torch.empty(0, dtype=torch.long), *token_parts(tokenizer, [text])])


def token_parts(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], end: Sequence[int] = (), *, special: bool = True
) -> Iterator[Tensor]:
    """The tokens of the documents, 1-D, some documents at a time; ``end`` comes after each that does not end so already.

    Every document is tokenized by itself, with the special tokens that the tokenizer adds to it if ``special``; one of more
    than 16 million characters in pieces, cut at the ends of lines.
    """
    plain = {} if special else {"add_special_tokens": False}
    for some in _together(documents):
        found: list[int] = []
        if len(some) == 1 and len(some[0]) > _PIECE:
            for number, piece in enumerate(_pieces(some[0])):
                yield torch.tensor(tokenizer(piece, verbose=False, add_special_tokens=special and not number)["input_ids"])
            found += end
        else:
            for ids in tokenizer(some, verbose=False, **plain)["input_ids"]:
                found += ids if ids[len(ids) - len(end) :] == list(end) else [*ids, *end]
        yield torch.tensor(found, dtype=torch.long)


def _together(documents: Sequence[str]) -> Iterator[list[str]]:
    """Documents in lists that are not too long."""
    some: list[str] = []
    length = 0
    for document in documents:
        if some and (len(some) == _TOGETHER or length + len(document) > _PIECE):
            yield some
            some, length = [], 0
        some.append(document)
        length += len(document)
    if some:
        yield some


def _pieces(document: str) -> Iterator[str]:
    start = 0
    while start < len(document):
        stop = document.rfind("\n", start, start + _PIECE) + 1 if len(document) - start > _PIECE else len(document)
        stop = stop or start + _PIECE  # a line as long as that
        yield document[start:stop]
        start = stop


def choose_window(model: PreTrainedModel, window: int | None, default: int) -> int:
    """Tokens per window: ``window``, or if it is None, ``default`` or the model's limit, whichever is less.

    Raises:
        DataError: less than 2 tokens, or more than the model's limit.
    """
    limit = longest_text(model)
    window = window if window is not None else min(default, limit or default)
    if window < 2:
        raise DataError(f"invalid window {window}; use at least 2 tokens")
    if limit is not None and window > limit:
        raise DataError(f"windows of {window} tokens exceed the model's limit of {limit}; use a window of {limit}")
    return window


def require_own_tokens(model: nn.Module, ids: Tensor, what: str) -> None:
    """Refuse token ids that the model has no row for; its tokenizer is another model's then.

    Raises:
        DataError: says what ids ``what`` holds, and which are known.
    """
    size = vocabulary(model)
    low, high = map(int, ids.aminmax()) if ids.numel() else (0, 0)
    if low < 0 or (size is not None and high >= size):
        known = "no negative ones" if size is None else f"0..{size - 1}"
        raise DataError(f"{what} holds token ids {low}..{high}, the model knows {known}; use its own tokenizer")


def calibration_windows(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    *,
    window: int,
    windows: int,
    seed: int,
    special: bool = True,
) -> Tensor:
    """``windows`` random windows of the documents' tokens, int64 ``(windows, window)``, in the order of the text.

    Every document is tokenized by itself, with the special tokens that the tokenizer adds to it if ``special``, and all are
    joined. The windows do not overlap; every way to place them is equally likely. Text that has no more than so many gives
    all its whole windows, one right after the other. Of text with more than a thousand characters for every token that is
    wanted, a random part is tokenized.

    Raises:
        DataError: the text has less than one window; ``windows`` is not positive.
    """
    if windows < 1:
        raise DataError(f"invalid number of calibration windows {windows}; use at least 1")
    written = [document for document in documents if document.strip()]
    enough = _some(written, windows * window * _ENOUGH, seed)
    tokens = torch.cat([torch.empty(0, dtype=torch.long), *token_parts(tokenizer, enough, special=special)])
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


def _some(documents: Sequence[str], characters: int, seed: int) -> Sequence[str]:
    """All documents, or, if they have more than so many characters, a random choice of them and of pieces of long ones."""
    if sum(map(len, documents)) <= characters:
        return documents
    parts = [piece for document in documents for piece in _pieces(document)]
    chosen: list[int] = []
    for index in torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed)).tolist():
        if characters <= 0:
            break
        chosen.append(index)
        characters -= len(parts[index])
    return [parts[index] for index in sorted(chosen)]
