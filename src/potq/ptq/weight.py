"""One weight by itself: rounded to nearest, looked at beforehand, described afterwards."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from potq.config import PoTConfig
from potq.data.ranks import ALONE, Ranks
from potq.errors import ModelError
from potq.nn.plan import WeightPlan
from potq.nn.report import ModuleReport, decibels
from potq.numerics.scale_search import CANDIDATES, is_exact, scale_multipliers
from potq.numerics.scheme import WEIGHTED_METHODS, QuantScheme, ScaleMethod
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.rtn import rtn


def quantize_weight(
    weight: Tensor, target: WeightPlan, config: PoTConfig, importance: Tensor | None = None, ranks: Ranks = ALONE
) -> tuple[QuantizedWeight, ModuleReport]:
    """Quantize one weight ``(out, in)`` and say how well it went. Processes share its rows.

    Raises:
        ModelError: NaN or infinite weights, or weights beyond the scale's range; names the layer.
    """
    weight = weight.detach()  # in its own dtype: what computes with it takes blocks of float32
    check_weight(weight, target)
    # embeddings and heads are looked up or tied; their inputs are not a layer's activations
    weighted = importance is not None
    plain: ScaleMethod = "mse" if config.scale_method in WEIGHTED_METHODS else config.scale_method
    method: ScaleMethod = "weighted" if weighted else plain
    ranks = _sharing(target, ranks)
    rows = ranks.rows(len(weight))
    if importance is not None and importance.ndim == 2:
        importance = importance[rows]
    part = rtn(weight[rows], target.scheme, importance, method=method, candidates=config.scale_candidates)
    quantized = whole_weight(part, len(weight), ranks)
    label = _algorithm(config.scale_method if weighted else method, target.scheme, config.scale_candidates)
    return quantized, describe_weight(weight, target, quantized, label, ranks)


def whole_weight(part: QuantizedWeight, count: int, ranks: Ranks) -> QuantizedWeight:
    """A weight of ``count`` rows, of which every process has quantized its own (:meth:`potq.data.ranks.Ranks.rows`)."""
    tensors = {name: ranks.whole(tensor, count) for name, tensor in part.tensors().items()}
    return QuantizedWeight(shape=(count, part.shape[1]), scheme=part.scheme, **tensors)


def describe_weight(
    weight: Tensor, target: WeightPlan, quantized: QuantizedWeight, algorithm: str, ranks: Ranks = ALONE
) -> ModuleReport:
    """The report of one weight: sizes, how far ``quantized`` is from ``weight`` ``(out, in)``. Processes share its rows."""
    ranks = _sharing(target, ranks)
    rows = ranks.rows(len(weight))
    energies = ranks.values(quantized.rows(rows).energies(weight.detach()[rows]))
    signal, noise = map(math.fsum, zip(*energies, strict=True))
    return ModuleReport(
        name=target.name,
        kind=target.kind,
        shape=target.stored_shape,
        scheme=target.scheme.name,
        algorithm=algorithm,
        bits_per_weight=target.scheme.bits_per_weight(*target.shape),
        snr_db=decibels(signal, noise),
        bytes_before=weight.nbytes,
        bytes_after=quantized.nbytes,
        tied=target.tied,
    )


def _sharing(target: WeightPlan, ranks: Ranks) -> Ranks:
    """The processes that share a weight's rows; each does all of them where one scale is for all."""
    return ALONE if target.scheme.group_size == "tensor" else ranks


def _algorithm(method: ScaleMethod, scheme: QuantScheme, candidates: int | None) -> str:
    """A name for the report, with the number of scales really tried (E8M0 has few), or "exact"."""
    if method == "absmax":
        return "rtn/absmax"
    exact = is_exact(scheme, candidates)
    return f"rtn/{method}-{'exact' if exact else len(scale_multipliers(scheme, candidates or CANDIDATES))}"


def check_weight(weight: Tensor, target: WeightPlan) -> None:
    """Refuse weights that no scale can represent.

    Raises:
        ModelError: names the layer and says how many entries are at fault.
    """
    name = target.parameter_of(target.name)
    largest = float(torch.stack(torch.aminmax(weight)).float().abs().amax())  # NaN wins
    if not math.isfinite(largest):
        broken = int((~weight.float().isfinite()).sum())
        raise ModelError(f"{name} has {broken} NaN or infinite entries; repair the model, or ignore the layer")
    grid, limit = target.scheme.grid, torch.finfo(torch.float16).max
    if target.scheme.scale_dtype == "float16" and largest * grid.reference / max(grid.levels) > limit:
        raise ModelError(f"{name} reaches {largest:.3g}, its scale would pass float16's {limit:.0f}; use scale_dtype='e8m0'")
