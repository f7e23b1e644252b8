"""Perplexity by the GPTQ protocol: the whole text tokenized once, non-overlapping windows, the tail dropped.

``exp(sum of the negative log-likelihoods / number of predicted tokens)``; a window of ``n`` tokens predicts ``n - 1``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potq.data.tokens import choose_window, require_own_tokens
from potq.errors import DataError, ModelError
from potq.nn.properties import evaluation_mode
from potq.nn.refusals import require_causal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGIT_ROWS = 128  # rows of logits turned into float32 losses at a time: the vocabulary may have 256k entries


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and everything needed to compare it with another one."""

    perplexity: float
    window: int
    windows: int
    predicted_tokens: int
    window_nll: tuple[float, ...]
    """Summed negative log-likelihood (nats) of each window."""
    seconds: float

    @property
    def protocol(self) -> str:
        """The protocol in words; print it wherever the number is printed."""
        return (
            f"GPTQ protocol: {self.windows} non-overlapping windows of {self.window} tokens "
            f"(stride {self.window}), {self.predicted_tokens} tokens predicted"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "protocol": self.protocol}


def perplexity(
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    window: int | None = None,
    max_windows: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Perplexity:
    """Perplexity of ``model`` on ``tokens``.

    Args:
        tokens: the whole text's token ids, 1-D (see :func:`potq.data.tokens.tokenize`).
        window: tokens per window; by default 2048 or the model's limit, whichever is less.
        max_windows: stop after the first so many windows.
        progress: called after each window: number done, number in all, perplexity so far.

    Raises:
        DataError: the text is shorter than one window, or the window longer than the model's limit; tokens of another model.
        ModelError: the model's output is NaN, or no prediction of tokens.
    """
    require_causal(model, predicting=True)
    window = choose_window(model, window, 2048)
    require_own_tokens(model, tokens[: count_windows(tokens, window, max_windows) * window], "the text")
    with evaluation_mode(model):
        return windows_perplexity(
            lambda part: _window_nll(model, part), tokens, window=window, max_windows=max_windows, progress=progress
        )


def windows_perplexity(
    window_nll: Callable[[Tensor], float],
    tokens: Tensor,
    *,
    window: int,
    max_windows: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Perplexity:
    """Perplexity of whatever gives the negative log-likelihood of a window's tokens but the first, summed, in nats.

    Raises:
        DataError: the text is shorter than one window.
    """
    count = count_windows(tokens, window, max_windows)
    began = time.perf_counter()
    losses = []
    for index in range(count):
        losses.append(window_nll(tokens[index * window : (index + 1) * window]))
        if progress is not None:
            progress(index + 1, count, f"{_exp(math.fsum(losses) / len(losses) / (window - 1)):.2f}")
    predicted = count * (window - 1)
    mean = math.fsum(losses) / predicted
    return Perplexity(_exp(mean), window, count, predicted, tuple(losses), time.perf_counter() - began)


def count_windows(tokens: Tensor, window: int, most: int | None) -> int:
    """How many windows a text has, ``most`` of them if that is fewer.

    Raises:
        DataError: the text is shorter than one window, or ``most`` is not positive.
    """
    if most is not None and most < 1:
        raise DataError(f"invalid max_windows {most}; use at least 1")
    count = len(tokens) // window
    if not count:
        raise DataError(
            f"the text has {len(tokens)} tokens, less than one window of {window}; give more text or a smaller window"
        )
    return min(count, most) if most is not None else count


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        raise ModelError(f"the model loses {nats:.0f} nats per token: it is broken, and its perplexity overflows") from None


@torch.no_grad()
def _window_nll(model: PreTrainedModel, window: Tensor) -> float:
    logits = model(window[None].to(model.device), use_cache=False).logits[0, :-1]
    labels = window[1:].to(logits.device)
    total = 0.0
    for rows, expected in zip(logits.split(_LOGIT_ROWS), labels.split(_LOGIT_ROWS), strict=True):
        total += float(torch.nn.functional.cross_entropy(rows.float(), expected, reduction="sum"))
    if not math.isfinite(total):
        raise ModelError("the model's output is NaN or infinite; try dtype float32")
    return total
