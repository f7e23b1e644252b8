"""Choosing a row's float16 scale and the E8M0 scales of its groups together (``QuantScheme.row_scale``).

E8M0 scales know octaves only. A row scale says where within the octave all groups of its row lie: the search tries some
points of an octave, chooses the groups' scales anew under each, and keeps the point of least squared error. Given the codes
and exponents that this finds, the best row scale is a projection, which is tried last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from potq.errors import ModelError
from potq.numerics.functional import decode_scale, in_level_units, join_groups, nearest_level, split_groups, split_scales
from potq.numerics.scale_search import choose_scale, magnitude_importance
from potq.numerics.scheme import QuantScheme, ScaleMethod

_POINTS = 16  # of an octave
_BLOCK = 1 << 15  # weights per block, as in scale_search


def choose_row_scale(
    weight: Tensor,
    scheme: QuantScheme,
    importance: Tensor | None = None,
    *,
    method: ScaleMethod | None = None,
    candidates: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Stored group scales (uint8 ``(out, groups)``) and row scales (float16 ``(out, 1)``) for ``weight``.

    The squared error of a row, weighted by ``importance``, is never larger than without row scales. A zero row has a zero
    row scale.

    Args:
        weight: ``(out, in)``, any float dtype, finite.
        scheme: one with ``row_scale``.
        importance: non-negative weights of the errors, ``(in,)`` or ``(out, in)``.
        method: how group scales are chosen; ``"mse"``, or ``"weighted"`` with ``importance``, if not given. Under
            ``"magnitude"`` the row scale is the best by that measure too.
        candidates: as for :func:`potq.numerics.scale_search.choose_scale`.

    Raises:
        ModelError: a weight is NaN or infinite, or the matrix is empty.
        ConfigError: ``method`` and ``importance`` do not belong together.
    """
    if not weight.numel():
        raise ModelError(f"a weight of shape {tuple(weight.shape)} is empty")
    plain = scheme.model_copy(update={"row_scale": False})
    how = method or ("mse" if importance is None else "weighted")
    importance = importance.float().to(weight.device) if importance is not None else None
    step = max(1, _BLOCK // weight.shape[1])
    found = []
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        weights = importance[rows] if importance is not None and importance.ndim == 2 else importance
        found.append(_search(weight[rows].detach().float(), _Search(plain, weights, how, candidates)))
    return torch.cat([scale for scale, _ in found]), torch.cat([row_scale for _, row_scale in found])


@dataclass(frozen=True)
class _Search:
    """What stays the same for all points tried; ``scheme`` is without row scales."""

    scheme: QuantScheme
    importance: Tensor | None
    method: ScaleMethod
    candidates: int | None


class _Point(NamedTuple):
    """Scales tried, and their (weighted) squared error, float32 ``(rows, 1)``."""

    error: Tensor
    row_scale: Tensor  # float32 (rows, 1), float16's values
    scale: Tensor  # uint8 (rows, groups)


def _search(block: Tensor, search: _Search) -> tuple[Tensor, Tensor]:
    """Stored group and row scales of ``block`` ``(rows, in)``."""
    largest = block.abs().amax(dim=1, keepdim=True)
    octave = torch.frexp(largest).exponent - 1
    x = block / _power_of_two(octave)  # exact; largest weights of 1..2, where no error underflows
    if search.method == "magnitude":
        parts = [magnitude_importance(part) for part in split_groups(x, search.scheme)]
        search = replace(search, method="weighted", importance=join_groups(parts, len(x)))
    best = _try(x, torch.ones_like(largest), search)
    for i in range(1, _POINTS):
        best = _better(best, _try(x, torch.full_like(largest, 2 ** (i / _POINTS)), search))
    best = _better(best, _try(x, _projection(x, best, search), search))
    # float16 takes as much of the octave as it can without losing bits, the exponents of the groups take the rest
    taken = octave.clamp(-13, 14)
    row_scale = torch.where(largest > 0, best.row_scale * _power_of_two(taken), 0.0).to(torch.float16)
    limit = (254 - taken - (best.row_scale > 1).int()).clamp_(max=254)  # row scale * group scale <= 2**127
    scale = torch.minimum((best.scale.int() + (octave - taken)).clamp_(min=0), limit)
    return scale.to(torch.uint8), row_scale


def _power_of_two(exponent: Tensor) -> Tensor:
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)


def _try(x: Tensor, row_scale: Tensor, search: _Search) -> _Point:
    """The best group scales of ``x`` under ``row_scale``, rounded to float16."""
    row_scale = row_scale.to(torch.float16).float()
    y = x / row_scale
    scale = choose_scale(y, search.scheme, search.method, search.candidates, search.importance)
    error = (_rounded(y, scale, search.scheme) - y).square_()
    if search.importance is not None:
        error *= search.importance
    return _Point(error.sum(1, keepdim=True) * row_scale.square(), row_scale, scale)


def _rounded(y: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
    """``dequantize(quantize(y))``, without the detour over codes."""
    grid, parts = scheme.grid, split_groups(y, scheme)
    scales = split_scales(decode_scale(scale), parts)
    levels = [nearest_level(in_level_units(part, s, grid), scheme) for part, s in zip(parts, scales, strict=True)]
    return join_groups([part * (s / grid.reference) for part, s in zip(levels, scales, strict=True)], len(y))


def _projection(x: Tensor, point: _Point, search: _Search) -> Tensor:
    """The row scales that fit ``point``'s codes and exponents best: ``<x, v> / <v, v>``."""
    v = _rounded(x / point.row_scale, point.scale, search.scheme)
    weighted = v if search.importance is None else v * search.importance
    norm = (weighted * v).sum(1, keepdim=True)
    best = torch.where(norm > 0, (weighted * x).sum(1, keepdim=True) / norm, point.row_scale)
    return best.clamp_(0.5, 2)  # what lies beyond is an exponent's business, and float16 could lose bits of it


def _better(one: _Point, other: _Point) -> _Point:
    """The point of less error, row by row."""
    better = other.error < one.error
    return _Point(*(torch.where(better, b, a) for a, b in zip(one, other, strict=True)))
