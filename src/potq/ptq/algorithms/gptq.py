"""GPTQ (2210.17323) on any grid: columns rounded one by one, every error made up for by the columns still to come.

Deviations from the paper: scales are chosen by Hessian-weighted squared error, exactly, and not from the largest weight;
with ``ordered`` they are chosen for all groups before the columns are taken in another order; damping grows until the
Hessian can be factored; an input that is always zero keeps its rounded weight, which costs nothing. The factor of the
inverse comes from :mod:`potq.ptq.algorithms.hessian`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from potq.numerics.functional import group_index
from potq.ptq.algorithms.columns import Block, compensate
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.rounding import Rounded, Rounding

_BLOCK = 128  # columns at a time where a group is longer, or columns are ordered


def gptq(weight: Tensor, hessian: Hessian, rounding: Rounding, *, ordered: bool = True) -> Rounded:
    """Quantize ``weight`` ``(out, in)``, float32, for inputs of second moments ``hessian``.

    Args:
        ordered: take the columns of largest second moment first.

    Raises:
        NotFactorableError: ``hessian`` has no factor.
    """
    columns, size = weight.shape[1], rounding.group(weight.shape[1])
    order, factor = hessian.factor(ordered=ordered)
    group = group_index(columns, size, weight.device)[order]
    latent, values = weight[:, order].contiguous(), torch.empty_like(weight)
    scale, shift = fit_groups(weight, hessian.diagonal, rounding) if ordered else (weight.new_empty(len(weight), 0), None)
    for start, stop in _blocks(columns, columns if ordered else size):
        if not ordered and start % size == 0:
            end = min(start + size, columns)
            fitted = rounding.fit(latent[:, start:end].contiguous(), factor.diagonal()[start:end].pow(-2))
            scale, shift = _append(scale, shift, *fitted)
        now = latent[:, start:stop].contiguous()
        block = Block(rounding, scale, shift, group[start:stop].contiguous())
        values[:, start:stop], errors = compensate(block, now, factor[start:stop, start:stop])
        latent[:, start:stop] = now
        latent[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    back = torch.argsort(order)
    return Rounded(values[:, back].contiguous(), scale, shift, latent[:, back].contiguous())


def fit_groups(weight: Tensor, importance: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor | None]:
    """Scale and shift ``(rows, groups)`` of every group of ``weight`` by itself, errors weighted by ``(columns,)``."""
    size = rounding.group(weight.shape[1])
    pieces = zip(weight.split(size, dim=1), importance.split(size), strict=True)
    scale, shift = weight.new_empty(len(weight), 0), None
    for piece, weights in pieces:
        scale, shift = _append(scale, shift, *rounding.fit(piece.contiguous(), weights))
    return scale, shift


def _append(scale: Tensor, shift: Tensor | None, more: Tensor, shifts: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if shifts is not None:
        shift = shifts if shift is None else torch.cat([shift, shifts], dim=1)
    return torch.cat([scale, more], dim=1), shift


def _blocks(columns: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most :data:`_BLOCK` columns within groups of ``size``."""
    for first in range(0, columns, size):
        last = min(first + size, columns)
        for start in range(first, last, _BLOCK):
            yield start, min(start + _BLOCK, last)
