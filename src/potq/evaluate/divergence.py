"""How far a model's predictions are from full precision's, token by token: what quantizing changed, whatever the text says.

Perplexity asks about the one token that the text has. A model that lost and gained as much has the same perplexity, and not
the same predictions.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potq.data.tokens import choose_window, require_own_tokens
from potq.errors import ModelError
from potq.evaluate.perplexity import count_windows
from potq.nn.losses import divergences
from potq.nn.properties import evaluation_mode, require_same_vocabulary
from potq.nn.refusals import require_causal
from potq.nn.report import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HIGH = 0.99  # of the tokens diverge no more than what is shown beside the mean


@dataclass(frozen=True)
class Divergence:
    """Kullback-Leibler divergences from a reference model, and everything needed to compare them with others.

    Attributes:
        mean: of all predicted tokens, in nats.
        percentile_99: what 99 of 100 predicted tokens do not exceed, in nats.
        top1_agreement: the part of the predictions whose likeliest token is the reference's, 0 to 1.
        window_divergence: summed over each window, in nats.
    """

    mean: float
    percentile_99: float
    top1_agreement: float
    window: int
    windows: int
    predicted_tokens: int
    window_divergence: tuple[float, ...]
    seconds: float

    @property
    def protocol(self) -> str:
        """The protocol in words; print it wherever the numbers are printed."""
        return (
            f"Kullback-Leibler divergence from the reference's predictions: {self.windows} non-overlapping windows of "
            f"{self.window} tokens, {self.predicted_tokens} tokens predicted"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "protocol": self.protocol}


def kl_divergence(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokens: Tensor,
    *,
    window: int | None = None,
    max_windows: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """How far ``model``'s predictions are from those of ``reference``, on the windows of :func:`~.perplexity.perplexity`.

    Args:
        reference: the model in full precision.
        tokens: the whole text's token ids, 1-D (see :func:`potq.data.tokens.tokenize`).
        window: tokens per window; by default 2048 or the model's limit, whichever is less.
        max_windows: stop after the first so many windows.
        progress: called after each window: number done, number in all, mean so far.

    Raises:
        DataError: the text is shorter than one window, or the window longer than a model's limit; tokens of another model.
        ModelError: an output that is NaN or infinite, or no prediction of tokens; the two have different vocabularies.

    Example:
        >>> import potq
        >>> from potq.data.tokens import tokenize
        >>> from potq.evaluate.divergence import kl_divergence
        >>> tokens = tokenize(potq.load_tokenizer("tiny"), "The cat sat on the mat. " * 20)
        >>> found = kl_divergence(potq.load("packed"), potq.load("tiny"), tokens, window=32)
        >>> 0 < found.mean < found.percentile_99
        True
    """
    for each in (model, reference):
        require_causal(each, predicting=True)
    require_same_vocabulary(model, reference)
    window = choose_window(reference, choose_window(model, window, 2048), 2048)
    count = count_windows(tokens, window, max_windows)
    require_own_tokens(model, tokens[: count * window], "the text")
    began = time.perf_counter()
    found: list[Tensor] = []
    sums: list[float] = []
    agreed = 0
    with evaluation_mode(model), evaluation_mode(reference):
        for index, part in enumerate(tokens[: count * window].view(count, window)):
            each, alike = _window(model, reference, part)
            found.append(each)
            sums.append(float(each.sum()))
            agreed += alike
            if progress is not None:
                progress(index + 1, count, f"{math.fsum(sums) / len(sums) / (window - 1):.4f}")
    return _summary(torch.cat(found), sums, agreed, window, time.perf_counter() - began)


def _summary(every: Tensor, sums: list[float], agreed: int, window: int, seconds: float) -> Divergence:
    return Divergence(
        mean=float(every.mean()),
        percentile_99=float(every.kthvalue(math.ceil(_HIGH * len(every))).values),
        top1_agreement=agreed / len(every),
        window=window,
        windows=len(sums),
        predicted_tokens=len(every),
        window_divergence=tuple(sums),
        seconds=seconds,
    )


@torch.no_grad()
def _window(model: PreTrainedModel, reference: PreTrainedModel, window: Tensor) -> tuple[Tensor, int]:
    """Of the tokens that a window predicts: float64 divergences on the CPU, and how often both expect the same one."""
    own, full = (each(window[None].to(each.device), use_cache=False).logits[0, :-1] for each in (model, reference))
    full = full.to(own.device)
    found = divergences(own, full).double().cpu()
    if not found.isfinite().all():
        raise ModelError("the output of the model or of its reference is NaN or infinite; try dtype float32")
    return found, int((own.argmax(-1) == full.argmax(-1)).sum())
