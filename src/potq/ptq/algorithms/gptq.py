"""GPTQ (2210.17323) on any grid: columns rounded one by one, every error made up for by the columns still to come.

Deviations from the paper: scales are chosen by Hessian-weighted squared error, exactly, and not from the largest weight;
with ``ordered`` they are chosen for all groups before the columns are taken in another order; damping grows until the
Hessian can be factored; an input that is always zero keeps its rounded weight, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from potq.errors import PotqError
from potq.numerics.functional import all_finite, group_index
from potq.ptq.algorithms.columns import Block, compensate
from potq.ptq.algorithms.rounding import Rounded, Rounding

_BLOCK = 128  # columns at a time where a group is longer, or columns are ordered


class NotFactorableError(PotqError):
    """The Hessian has no Cholesky factor even with its diagonal doubled: it is not a matrix of second moments."""


def gptq(weight: Tensor, hessian: Tensor, rounding: Rounding, *, ordered: bool = True, damping: float = 0.01) -> Rounded:
    """Quantize ``weight`` ``(out, in)`` for inputs of second moments ``hessian`` ``(in, in)``, both float32.

    Args:
        ordered: take the columns of largest second moment first.
        damping: what is added to the diagonal of ``hessian``, as a part of its mean; more where that does not suffice.

    Raises:
        NotFactorableError: no damping up to 1 makes ``hessian`` positive definite.
    """
    columns, size = weight.shape[1], rounding.group(weight.shape[1])
    hessian = without_dead_inputs(hessian)
    order = torch.arange(columns, device=weight.device)
    if ordered:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    factor = inverse_factor(hessian, damping, order)
    group = group_index(columns, size, weight.device)[order]
    latent, values = weight[:, order].contiguous(), torch.empty_like(weight)
    scale, shift = fit_groups(weight, hessian.diagonal(), rounding) if ordered else (weight.new_empty(len(weight), 0), None)
    for start, stop in _blocks(columns, columns if ordered else size):
        if not ordered and start % size == 0:
            end = min(start + size, columns)
            fitted = rounding.fit(latent[:, start:end].contiguous(), factor.diagonal()[start:end].pow(-2))
            scale, shift = _append(scale, shift, *fitted)
        now = latent[:, start:stop].contiguous()
        block = Block(rounding, scale, shift, group[start:stop].contiguous())
        values[:, start:stop], errors = compensate(block, now, factor[start:stop, start:stop])
        latent[:, start:stop] = now
        latent[:, stop:] -= errors @ factor[start:stop, stop:]
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


def without_dead_inputs(hessian: Tensor) -> Tensor:
    """``hessian`` with a mean diagonal where an input is always zero: such columns are rounded to nearest.

    It is ``hessian`` itself if no input is: a wide layer's takes most of a gigabyte.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    if not bool(dead.any()):
        return hessian
    mean = diagonal[~dead].mean() if bool((~dead).any()) else diagonal.new_ones(())
    return with_larger_diagonal(hessian, dead * mean)


def with_larger_diagonal(hessian: Tensor, more: Tensor) -> Tensor:
    """A copy with ``more``, a number or one for each column, added to the diagonal."""
    hessian = hessian.clone()
    hessian.diagonal().add_(more)
    return hessian


def inverse_factor(hessian: Tensor, damping: float, order: Tensor | None = None) -> Tensor:
    """Upper Cholesky factor ``U`` of the inverse, ``H^-1 = U^T U``; the damping grows tenfold until there is one.

    Beside ``hessian`` and the result there is one matrix of that size in memory.

    Args:
        order: that the columns and rows are to have.

    Raises:
        NotFactorableError: none up to 1 suffices.
    """
    while damping < 10:
        damped = hessian.clone() if order is None else _reordered(hessian, order)
        damped.diagonal().add_(min(damping, 1.0) * damped.diagonal().mean())
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower, out=lower), upper=True)
            del lower
            if not failed and all_finite(factor):
                found: Tensor = factor
                return found
        damping *= 10
    raise NotFactorableError("the second moments of its inputs are not positive definite, even damped")


def _reordered(hessian: Tensor, order: Tensor) -> Tensor:
    """``hessian[order][:, order]``."""
    result = hessian.index_select(0, order)
    for rows in result.split(_BLOCK):
        rows.copy_(rows.index_select(1, order))
    return result


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
