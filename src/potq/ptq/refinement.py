"""Codes and scales learned together: a block's, to put out what it does in full precision, or the whole model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from potq.config import Effort
from potq.nn.losses import divergence, output_loss
from potq.nn.precision import mixed_precision
from potq.nn.report import Progress
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.learned import LearnedWeight
from potq.ptq.algorithms.refine import Learning, fit
from potq.ptq.algorithms.rounding import SchemeRounding
from potq.ptq.blocks import HiddenStates
from potq.ptq.layer import Found, Layer
from potq.ptq.share import Share
from potq.ptq.substitute import Exchange
from potq.resume import WorkFolder


@dataclass(frozen=True)
class Refinement:
    """What a block is refined by: its inputs as the full-precision model has them, and the batches in a seed's order."""

    exact: HiddenStates
    share: Share
    seed: int


def refine_block(
    block: nn.Module,
    found: Found,
    seen: HiddenStates,
    refinement: Refinement,
    effort: Effort,
    progress: Callable[[int, int, float], None] | None = None,
) -> Found:
    """Learn the block's codes and scales to put out what the full-precision block puts out after full-precision ones."""
    weights = {name: LearnedWeight(rounded, rounding, codes=effort.codes) for name, (rounded, rounding, _) in found.items()}

    def loss(index: int) -> Tensor:
        call = seen.calls[index]
        with call.precision():
            output = call(block)
        return output_loss(output, refinement.exact.calls[index].hidden.to(output.device))

    with Learning({block.get_submodule(name): weight for name, weight in weights.items()}):
        fit(list(weights.values()), loss, refinement.share, effort, refinement.seed, progress)
    return {
        name: (weights[name].rounded(), rounding, label + _learned(rounding, "block", effort))
        for name, (_, rounding, label) in found.items()
    }


def refine_model(
    model: nn.Module,
    layers: dict[str, Layer],
    fixed: dict[str, QuantizedWeight],
    share: Share,
    effort: Effort,
    seed: int,
    *,
    progress: Progress | None = None,
    folder: WorkFolder | None = None,
) -> None:
    """Learn the layers' codes and scales together, to predict what the full-precision model predicts.

    Args:
        layers: by name; those that can be refined are changed in place.
        fixed: weights outside the blocks as they will be when quantized.
        folder: where a run that is killed goes on from, or None.
    """
    weights: dict[nn.Module, LearnedWeight] = {}
    for name, layer in layers.items():
        if layer.rounding is not None:
            rounded = layer.rounding.unpack(layer.weight)
            if layer.latent is not None:
                rounded, layer.latent = replace(rounded, latent=layer.latent), None
            weights[model.get_submodule(name)] = LearnedWeight(rounded, layer.rounding, codes=effort.codes)
    final = {name: layer.weight for name, layer in layers.items() if layer.rounding is None}
    exchange = Exchange(model, fixed | final)
    learning = Learning(weights)

    def loss(index: int) -> Tensor:
        batch = share.batches[index].to(next(model.parameters()).device)
        with torch.no_grad(), learning.paused(), exchange.swapped(), mixed_precision(batch.device):
            teacher = model(batch, use_cache=False).logits
        with mixed_precision(batch.device):
            logits = model(batch, use_cache=False).logits
        return divergence(logits, teacher)

    def report(step: int, steps: int, value: float) -> None:
        if progress is not None:
            progress(step, steps, f"refining: divergence {value:.4f}")

    with exchange.swapped(), learning:  # until the last backward pass, which may read the weights
        fit(list(weights.values()), loss, share, effort, seed, report, folder)
    for name, layer in layers.items():
        if layer.rounding is not None:
            layer.weight = layer.rounding.pack(weights[model.get_submodule(name)].rounded())
            layer.algorithm += _learned(layer.rounding, "model", effort)


def _learned(rounding: SchemeRounding, scope: str, effort: Effort) -> str:
    """What a refinement adds to a layer's label; scales that are powers of two are not learned."""
    if effort.codes:
        return f"+{scope}"
    return f"+{scope}-scales" if rounding.fine else ""
