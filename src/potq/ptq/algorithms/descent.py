"""Joint refinement of a layer's scales and codes on its own output error, ``(w - v) H (w - v)^T`` for every row.

In turns: the scales, given the codes, are a least-squares problem of one unknown a group, solved exactly and rounded to
their stored format; the codes, given the scales, improve by coordinate descent. A row keeps new scales only if they help,
and a code changes only for the better, so the error never grows. (CDQuant, 2406.17542, descends on codes alone.) With a
trellis, windows of a row's path change (:func:`potq.ptq.algorithms.paths.sweep_paths`).

The gradient ``(v - w) H`` goes along. With ``B`` the levels, those of group ``g`` in column ``g``, a step ``d`` of the
scales changes the error by ``d (B^T H B d + 2 B^T g)``. So neither the best step nor what it gains needs a product of the
weight with ``H``.

Of a wide layer a stripe of groups takes its turn at a time, its scales, then its codes, all others as they are. Its systems
are small then, and its sweeps short; what it does to the others' gradients is one product. Against all scales at once that
leaves up to 1 % more error (three stripes, SmolLM2), of the 10 to 30 % that refining takes away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from potq.numerics.functional import group_index, spread, sum_groups
from potq.ptq.algorithms.columns import Block, descend
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.paths import sweep_paths
from potq.ptq.algorithms.rounding import Rounded, Rounding, rescale

_SWEEPS = 2  # of coordinate descent a round
_STRIPE = 2048  # columns of a layer that are refined together
_TILE = 1024  # columns of a product that stay in the cache until they are added up


def refine_layer(weight: Tensor, hessian: Hessian, rounded: Rounded, rounding: Rounding, *, rounds: int) -> Rounded:
    """Improve ``rounded``, a quantized form of the float32 ``weight`` ``(out, in)``, for inputs of moments ``hessian``."""
    columns = weight.shape[1]
    stripe = stripe_columns(columns, rounding)
    gradient = (rounded.values - weight) @ hessian.matrix
    found = replace(rounded, values=rounded.values.clone(), scale=rounded.scale.clone())
    for _ in range(rounds):
        for start in range(0, columns, stripe):
            _refine_stripe(found, gradient, hessian.matrix, slice(start, min(start + stripe, columns)), rounding)
    return found


def stripe_columns(columns: int, rounding: Rounding) -> int:
    """Of a row of so many, those that are refined together: whole groups; all of them with a trellis."""
    size = rounding.group(columns)
    return columns if rounding.trellis else min(columns, max(1, _STRIPE // size) * size)


def _refine_stripe(rounded: Rounded, gradient: Tensor, hessian: Tensor, stripe: slice, rounding: Rounding) -> None:
    """Scales, then codes, of the groups in ``stripe``, all others as they are; ``rounded`` and ``gradient`` follow."""
    size = rounding.group(rounded.values.shape[1])
    groups = slice(stripe.start // size, -(-stripe.stop // size))
    before, shift = rounded.values[:, stripe], None if rounded.shift is None else rounded.shift[:, groups].contiguous()
    own, corner = gradient[:, stripe].contiguous(), hessian[stripe, stripe].contiguous()
    part = _refit_scales(own, corner, Rounded(before, rounded.scale[:, groups], shift, before), rounding)
    part = replace(part, values=part.values.contiguous(), scale=part.scale.contiguous())
    own.addmm_(part.values - before, corner)
    block = Block(rounding, part.scale, shift, group_index(part.values.shape[1], size, own.device))
    for _ in range(_SWEEPS):
        if rounding.trellis:
            sweep_paths(part.values, own, corner, part, rounding)
        else:
            descend(block, part.values, own, corner)
    change = part.values - before
    gradient[:, : stripe.start].addmm_(change, hessian[stripe, : stripe.start])
    gradient[:, stripe.stop :].addmm_(change, hessian[stripe, stripe.stop :])
    gradient[:, stripe], rounded.values[:, stripe], rounded.scale[:, groups] = own, part.values, part.scale


def output_error(weight: Tensor, values: Tensor, hessian: Tensor) -> Tensor:
    """``(w - v) H (w - v)^T`` of every row, ``(out,)``."""
    difference = values - weight
    return ((difference @ hessian) * difference).sum(1)


def _refit_scales(gradient: Tensor, hessian: Tensor, rounded: Rounded, rounding: Rounding) -> Rounded:
    """The best scales for the codes as they are, for those rows that gain by them."""
    columns = rounded.values.shape[1]
    size = rounding.group(columns)
    each = spread(rounded.scale, size, columns)
    levels = rounded.values / torch.where(each != 0, each, torch.inf)
    system, slope = _system(levels, hessian, size), sum_groups(gradient * levels, size)
    scale = rounded.scale + _best_step(system, slope)
    refit = rescale(rounded, rounding.store(torch.where(scale * rounded.scale > 0, scale, rounded.scale)), rounding)
    step = refit.scale - rounded.scale
    better = (step * (2 * slope + _product(system, step))).sum(1) < 0
    keep = better[:, None]
    values, scale = torch.where(keep, refit.values, rounded.values), torch.where(keep, refit.scale, rounded.scale)
    return Rounded(values, scale, rounded.shift, rounded.latent)


def _system(levels: Tensor, hessian: Tensor, size: int) -> Tensor:
    """``B^T H B`` of every row, ``(rows, groups, groups)``: its lower triangle, zeros above."""
    rows, columns = levels.shape
    groups, tile = -(-columns // size), max(1, _TILE // size) * size
    system = levels.new_zeros(rows, groups, groups)
    for g in range(groups):
        part = slice(g * size, min((g + 1) * size, columns))
        own = levels[:, part].contiguous()
        for start in range(0, part.stop, tile):
            others = slice(start, min(start + tile, part.stop))
            product = (own @ hessian[part, others]).mul_(levels[:, others])
            system[:, g, start // size : -(-others.stop // size)] = sum_groups(product, size)
    return system


def _product(system: Tensor, step: Tensor) -> Tensor:
    """The symmetric matrices of which ``system`` holds the lower triangles, times ``step`` ``(rows, groups)``."""
    column = step[:, :, None]
    return (system @ column + system.mT @ column)[:, :, 0] - system.diagonal(dim1=1, dim2=2) * step


def _best_step(system: Tensor, slope: Tensor) -> Tensor:
    """Per row, the step ``d`` of the scales ``(rows, groups)`` that minimizes ``d (S d + 2 slope)``; zero without one."""
    # a group without a level other than zero has an empty equation: its scale stays
    empty = system.diagonal(dim1=1, dim2=2) <= 0
    more = empty.float()
    more += 1e-6 * (system.diagonal(dim1=1, dim2=2) + more).mean(1, keepdim=True)
    with _one_thread():
        factor, failed = torch.linalg.cholesky_ex(system + torch.diag_embed(more))
        step = torch.cholesky_solve(-slope[:, :, None], factor)[:, :, 0]
    usable = step.isfinite() & ~empty & (failed == 0)[:, None]
    return torch.where(usable, step, 0.0)


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch solves several systems at once, and MKL then gets those of more than 128 unknowns wrong: see the test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
