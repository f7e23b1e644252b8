"""One layer: quantized by the steps that look at it alone, or rounded where calibration does nothing for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potq.config import Effort
from potq.nn.convolution import is_grouped
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.descent import refine_layer
from potq.ptq.algorithms.gptq import NotFactorableError, fit_groups, gptq
from potq.ptq.algorithms.paths import compensated_paths
from potq.ptq.algorithms.rounding import Rounded, SchemeRounding, round_to_nearest
from potq.ptq.algorithms.rtn import rtn

Found = dict[str, tuple[Rounded, SchemeRounding, str]]
"""Layers of a block by name: what was found for each, how it is stored, and what was done."""


@dataclass
class Layer:
    """A layer that was quantized: its packed weight, what was done, and what further refinement starts from, if any."""

    weight: QuantizedWeight
    algorithm: str
    rounding: SchemeRounding | None = None
    latent: Tensor | None = None


def rounded_only(module: nn.Module, scheme: QuantScheme) -> str:
    """Why calibration does nothing for a layer that is reached, if so."""
    if scheme.group_size == "tensor":
        return "one scale for all rows"
    return "a convolution in groups" if is_grouped(module) else ""


def rounded_layer(weight: Tensor, scheme: QuantScheme, reason: str) -> Layer:
    """A layer that calibration does nothing for."""
    return Layer(rtn(weight.detach().float(), scheme), f"rtn/mse ({reason})")


def calibrated_layer(weight: Tensor, hessian: Tensor, scheme: QuantScheme, effort: Effort) -> Layer:
    """A layer's weight ``(out, in)``, by itself."""
    weight = weight.detach().float()
    rounding = SchemeRounding.of(weight, scheme, hessian.diagonal())
    rounded, rounding, label = quantize_layer(weight, hessian, rounding, effort)
    return Layer(rounding.pack(rounded), label)


def quantize_layer(
    weight: Tensor, hessian: Tensor, rounding: SchemeRounding, effort: Effort
) -> tuple[Rounded, SchemeRounding, str]:
    """A layer's weight ``(out, in)`` by the steps of ``effort`` that look at it alone; what was done, in a word."""
    diagonal = hessian.diagonal()
    if not bool(diagonal.any()):  # experts whose inputs are multiplied with zero where they are not to compute
        rounded = round_to_nearest(weight, *fit_groups(weight, torch.ones_like(diagonal), rounding), rounding)
        return rounded, rounding, "rtn/mse (its inputs are zero)"
    label = effort.model_copy(update={"scope": "none"}).steps
    try:
        if effort.compensate and rounding.trellis:
            rounded = compensated_paths(weight, hessian, rounding, damping=effort.damping)
        elif effort.compensate:
            rounded = gptq(weight, hessian, rounding, ordered=effort.ordered, damping=effort.damping)
        else:
            rounded = round_to_nearest(weight, *fit_groups(weight, torch.ones_like(diagonal), rounding), rounding)
    except NotFactorableError as error:
        rounded = round_to_nearest(weight, *fit_groups(weight, diagonal, rounding), rounding)
        return rounded, rounding, f"rtn/weighted ({error})"
    if effort.rounds:
        rounded = refine_layer(weight, hessian, rounded, rounding, rounds=effort.rounds, damping=effort.damping)
    return rounded, rounding, label
