"""Choosing a group's scale: from its largest weight, or the best of several by (weighted) squared error.

The search is step 1 of PoTPTQ (2507.11959, sec. 3.2): data-free, every group on its own. It works on cache-sized blocks and
needs a few passes per candidate, never a weights-by-levels distance matrix. A block is below torch's threshold for
splitting an operation over threads: splitting gains little at this size, and on a busy machine every operation would wait
for the slowest thread.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potq.errors import ConfigError, ModelError
from potq.functional import decode_scale, encode_scale, in_level_units, nearest_level, split_groups
from potq.grid import Grid
from potq.scheme import QuantScheme, ScaleMethod

_BLOCK = 1 << 15  # weights per block: its float32 temporaries stay in the second-level cache


def choose_scale(
    weight: Tensor,
    scheme: QuantScheme,
    method: ScaleMethod = "mse",
    candidates: int = 16,
    importance: Tensor | None = None,
) -> Tensor:
    """Stored scales for ``weight``, shape ``scheme.scale_shape(out, in)``, dtype float16 or uint8.

    Args:
        weight: ``(out, in)``, any float dtype, finite.
        method: ``"absmax"`` maps the group's largest magnitude to the grid's largest level; ``"mse"`` tries ``candidates``
            scales around it and keeps the one of least squared error; ``"weighted"`` weighs the errors by ``importance``.
        importance: ``(in,)`` non-negative weights, e.g. the mean square of each input.

    Raises:
        ModelError: a weight is NaN or infinite, or there is none.
        ConfigError: ``method="weighted"`` without ``importance`` (or the reverse), or of the wrong shape.
    """
    _check_importance(weight, method, importance)
    if not weight.numel():
        raise ModelError(f"a weight of shape {tuple(weight.shape)} is empty")
    weight = weight.detach().float()
    parts = split_groups(weight, scheme)
    matrix = importance.float().to(weight.device).expand_as(weight) if importance is not None else None
    weights = split_groups(matrix, scheme) if matrix is not None else [None] * len(parts)
    multipliers = scale_multipliers(scheme, 1 if method == "absmax" else candidates)
    scales = [_search_part(part, w, scheme, multipliers) for part, w in zip(parts, weights, strict=True)]
    return torch.cat(scales, dim=1)


def scale_multipliers(scheme: QuantScheme, candidates: int) -> list[float]:
    """Multiples of the absmax scale to try, the absmax scale itself first.

    Above 1 the largest weight rounds *up* to the top level: no further than where it would fall to the level below. Below
    1 it is clipped; the fewer the levels, the more clipping pays. E8M0 scales have few distinct neighbours: three octaves
    down, one up.
    """
    if candidates == 1:
        return [1.0]
    if scheme.scale_dtype == "e8m0":
        return [2.0**k for k in (0, -1, 1, -2, -3)][:candidates]
    low, high = _search_range(scheme.grid)
    ratio = (high / low) ** (1 / max(candidates - 2, 1))
    return [1.0] + [low * ratio**i for i in range(candidates - 1)]


def _search_range(grid: Grid) -> tuple[float, float]:
    top = sorted({abs(level) for level in grid.levels})[-2:]
    high = top[1] / (sum(top) / 2) if len(top) == 2 else 1.0
    # a dense search over Gaussian and Laplace groups of 64 finds at most 0.05 dB more than 16 points in these ranges
    return {2: 0.3, 3: 0.55, 8: 0.92}.get(grid.bits, 0.7), high


def _search_part(part: Tensor, importance: Tensor | None, scheme: QuantScheme, multipliers: list[float]) -> Tensor:
    """Stored scales ``(out, groups)`` of one part ``(out, groups, size)``, block of rows by block of rows."""
    rows, groups, size = part.shape
    step = max(1, _BLOCK // (groups * size))
    found = []
    for start in range(0, rows, step):
        block = part[start : start + step].reshape(-1, size)
        weights = None if importance is None else importance[start : start + step].reshape(-1, size)
        found.append(_search_block(block, weights, scheme, multipliers))
    return torch.cat(found).view(rows, groups)


def _search_block(block: Tensor, importance: Tensor | None, scheme: QuantScheme, multipliers: list[float]) -> Tensor:
    """Stored scales ``(groups,)`` of ``(groups, size)``."""
    base = absmax_scale(block, scheme.grid)
    best = encode_scale(base, scheme.scale_dtype)
    if len(multipliers) == 1:
        return best.squeeze(1)
    least = _squared_error(block, best, importance, scheme)
    for multiplier in multipliers[1:]:
        stored = encode_scale(base * multiplier, scheme.scale_dtype)
        error = _squared_error(block, stored, importance, scheme)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, stored, best)
    return best.squeeze(1)


def absmax_scale(block: Tensor, grid: Grid) -> Tensor:
    """Scale (float32, ``(groups, 1)``) that maps each group's largest magnitude to the grid's largest positive level.

    Raises:
        ModelError: a weight is NaN or infinite.
    """
    largest = block.abs().amax(dim=1, keepdim=True)
    if not largest.isfinite().all():
        raise ModelError("the weight has NaN or infinite entries")
    return largest * (grid.reference / max(grid.levels))


def _squared_error(block: Tensor, stored: Tensor, importance: Tensor | None, scheme: QuantScheme) -> Tensor:
    """Squared error ``(groups, 1)`` of rounding ``block`` under ``stored`` scales ``(groups, 1)``."""
    scale = decode_scale(stored)
    x = in_level_units(block, scale, scheme.grid)
    error = (nearest_level(x, scheme) - x).mul_(1 / scheme.grid.reference).square_()
    if importance is not None:
        error = error * importance
    total = error.sum(1, keepdim=True) * scale.square()
    if bool((scale > 0).all()):
        return total
    lost = block.square() if importance is None else block.square() * importance  # a zero scale loses the whole group
    return torch.where(scale > 0, total, lost.sum(1, keepdim=True))


def _check_importance(weight: Tensor, method: ScaleMethod, importance: Tensor | None) -> None:
    if (method == "weighted") != (importance is not None):
        raise ConfigError("scale_method='weighted' needs calibration statistics, and only it takes them; pass calibration=")
    if importance is not None and importance.shape != (weight.shape[1],):
        raise ConfigError(f"importance has shape {tuple(importance.shape)}, expected ({weight.shape[1]},)")
