"""One layer: quantized by the steps that look at it alone, or rounded where calibration does nothing for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potq.config import Effort
from potq.nn.convolution import is_grouped
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.descent import refine_layer, stripe_columns
from potq.ptq.algorithms.gptq import fit_groups, gptq
from potq.ptq.algorithms.hessian import Hessian, NotFactorableError
from potq.ptq.algorithms.paths import compensated_paths
from potq.ptq.algorithms.rounding import Rounded, SchemeRounding, joined, round_to_nearest
from potq.ptq.algorithms.rtn import rtn

WEIGHTS = 1 << 22  # that are quantized at a time
_SYSTEMS = 1 << 24  # entries of the least-squares systems that are solved at a time

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


def calibrated_layer(weight: Tensor, hessian: Hessian, scheme: QuantScheme, effort: Effort) -> Layer:
    """A layer's weight ``(out, in)``, by itself."""
    rounding = SchemeRounding.of(weight.detach(), scheme, hessian.moments)
    rounded, rounding, label = quantize_layer(weight, hessian, rounding, effort)
    return Layer(rounding.pack(rounded), label)


def quantize_layer(
    weight: Tensor, hessian: Hessian, rounding: SchemeRounding, effort: Effort
) -> tuple[Rounded, SchemeRounding, str]:
    """A layer's weight ``(out, in)`` by the steps of ``effort`` that look at it alone; what was done, in a word.

    Some rows at a time: no row depends on another, and what stands between weight and result then stays in the cache.
    """
    weight = weight.detach()
    if not bool(hessian.moments.any()):  # experts whose inputs are multiplied with zero where they are not to compute
        return _nearest(weight, torch.ones_like(hessian.moments), rounding), rounding, "rtn/mse (its inputs are zero)"
    try:
        parts = [_quantize_rows(weight[rows], hessian, rounding.rows(rows), effort) for rows in panels(weight, rounding)]
    except NotFactorableError as error:
        return _nearest(weight, hessian.moments, rounding), rounding, f"rtn/weighted ({error})"
    return joined(parts), rounding, effort.model_copy(update={"scope": "none"}).steps


def panels(weight: Tensor, rounding: SchemeRounding) -> list[slice]:
    """The rows of ``weight`` ``(out, in)`` that are quantized at a time."""
    groups = -(-stripe_columns(weight.shape[1], rounding) // rounding.group(weight.shape[1]))
    rows = max(1, min(WEIGHTS // weight.shape[1], _SYSTEMS // groups**2))
    return [slice(start, min(start + rows, len(weight))) for start in range(0, len(weight), rows)]


def _quantize_rows(weight: Tensor, hessian: Hessian, rounding: SchemeRounding, effort: Effort) -> Rounded:
    weight = weight.float()
    if effort.compensate and rounding.trellis:
        rounded = compensated_paths(weight, hessian, rounding)
    elif effort.compensate:
        rounded = gptq(weight, hessian, rounding, ordered=effort.ordered)
    else:
        rounded = _nearest(weight, torch.ones_like(hessian.moments), rounding)
    return refine_layer(weight, hessian, rounded, rounding, rounds=effort.rounds) if effort.rounds else rounded


def _nearest(weight: Tensor, importance: Tensor, rounding: SchemeRounding) -> Rounded:
    weight = weight.float()
    return round_to_nearest(weight, *fit_groups(weight, importance, rounding), rounding)
