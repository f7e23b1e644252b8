"""Whether a model still writes what it wrote: BERTScore (arXiv 1904.09675) of its greedy continuations.

Scores of one encoder and layer are comparable with each other and with nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from potq.errors import DataError
from potq.evaluate.continuations import BATCH, Prompts, continuations
from potq.evaluate.encoder import Encoder
from potq.nn.properties import require_same_vocabulary
from potq.nn.report import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class F1:
    """BERTScore F1 of pairs of texts."""

    mean: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class ContinuationScore:
    """How alike continuations are, and everything needed to compare that with another one."""

    model_true: F1
    """The model's with the text's own."""
    reference_true: F1 | None
    """The reference model's with the text's own, if there is one."""
    model_reference: F1 | None
    """The model's with the reference model's, if there is one."""
    encoder: str
    layer: int
    library: str
    prompts: int
    prompt_tokens: int
    new_tokens: int
    seconds: float

    @property
    def protocol(self) -> str:
        """The protocol in words; print it wherever the numbers are printed."""
        return (
            f"BERTScore F1 ({self.library}, layer {self.layer} of {self.encoder}, not rescaled, no idf): {self.prompts} "
            f"evenly spaced prompts of {self.prompt_tokens} tokens, greedy continuations of up to {self.new_tokens}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "protocol": self.protocol}


def continuation_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    encoder: Encoder,
    *,
    reference: PreTrainedModel | Sequence[Tensor] | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> ContinuationScore:
    """BERTScore of ``model``'s greedy continuations with the text's own, and with those of a ``reference`` model.

    Args:
        tokenizer: the model's own, and the reference's.
        reference: the full-precision model, or what it wrote (:func:`~potq.evaluate.continuations.continuations` of the
            same prompts), if there is one to compare with.
        batch: continuations written at a time.
        progress: called after each batch, first for the model, then for the reference.

    Raises:
        DataError: prompts and continuations longer than a model's limit, or not a continuation of each prompt.
        ModelError: the two models have different vocabularies.
    """
    count, new_tokens = prompts.truths.shape
    _check_reference(reference, model, count)
    began = time.perf_counter()
    write = partial(continuations, prompts=prompts.prompts, new_tokens=new_tokens, batch=batch, progress=progress)
    true, own = _texts(tokenizer, prompts.truths), _texts(tokenizer, write(model))
    full = None
    if reference is not None:
        full = _texts(tokenizer, reference if isinstance(reference, Sequence) else write(reference))
    return ContinuationScore(
        model_true=_f1(encoder, own, true),
        reference_true=_f1(encoder, full, true) if full is not None else None,
        model_reference=_f1(encoder, own, full) if full is not None else None,
        encoder=encoder.name,
        layer=encoder.layer,
        library=encoder.library,
        prompts=count,
        prompt_tokens=prompts.prompts.shape[1],
        new_tokens=new_tokens,
        seconds=time.perf_counter() - began,
    )


def _check_reference(reference: PreTrainedModel | Sequence[Tensor] | None, model: PreTrainedModel, count: int) -> None:
    if isinstance(reference, Sequence):
        if len(reference) != count:
            raise DataError(f"{len(reference)} continuations to compare with, of {count} prompts; give one for each")
    elif reference is not None:
        require_same_vocabulary(model, reference)


def _texts(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Tensor]) -> list[str]:
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def _f1(encoder: Encoder, candidates: list[str], references: list[str]) -> F1:
    scores = encoder.f1(candidates, references)
    return F1(math.fsum(scores) / len(scores), tuple(scores))
