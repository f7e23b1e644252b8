"""Joint refinement of a layer's scales and codes on its own output error, ``(w - v) H (w - v)^T`` for every row.

In turns: the scales, given the codes, are a least-squares problem of one unknown a group, solved exactly and rounded to
their stored format; the codes, given the scales, improve by coordinate descent. A row keeps new scales only if they help,
and a code changes only for the better, so the error never grows. (CDQuant, 2406.17542, descends on codes alone.) With a
trellis, windows of a row's path change (:func:`potq.ptq.algorithms.paths.sweep_paths`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from potq.numerics.functional import group_index, spread, sum_groups
from potq.ptq.algorithms.columns import Block, descend
from potq.ptq.algorithms.gptq import with_larger_diagonal, without_dead_inputs
from potq.ptq.algorithms.paths import sweep_paths
from potq.ptq.algorithms.rounding import Rounded, Rounding, rescale

_SWEEPS = 2  # of coordinate descent a round
_SYSTEMS = 1 << 22  # entries of the least-squares systems that are built at a time


def refine_layer(
    weight: Tensor, hessian: Tensor, rounded: Rounded, rounding: Rounding, *, rounds: int, damping: float = 0.01
) -> Rounded:
    """Improve ``rounded``, a quantized form of ``weight`` ``(out, in)``, for inputs of second moments ``hessian``."""
    hessian = without_dead_inputs(hessian)
    hessian = with_larger_diagonal(hessian, damping * hessian.diagonal().mean())
    for _ in range(rounds):
        rounded = _refit_scales(weight, hessian, rounded, rounding)
        values = rounded.values.contiguous()
        gradient = (values - weight) @ hessian
        sweep = sweep_paths if rounding.trellis else _sweep
        for _ in range(_SWEEPS):
            sweep(values, gradient, hessian, rounded, rounding)
        rounded = Rounded(values, rounded.scale, rounded.shift, rounded.latent)
    return rounded


def output_error(weight: Tensor, values: Tensor, hessian: Tensor) -> Tensor:
    """``(w - v) H (w - v)^T`` of every row, ``(out,)``."""
    difference = values - weight
    return ((difference @ hessian) * difference).sum(1)


def _sweep(values: Tensor, gradient: Tensor, hessian: Tensor, rounded: Rounded, rounding: Rounding) -> None:
    columns = values.shape[1]
    size = min(rounding.group(columns), 128)
    group = group_index(columns, rounding.group(columns), values.device)
    for start in range(0, columns, size):
        part = slice(start, min(start + size, columns))
        block = Block(rounding, rounded.scale, rounded.shift, group[part].contiguous())
        now, slope = (matrix[:, part].clone(memory_format=torch.contiguous_format) for matrix in (values, gradient))
        changes = descend(block, now, slope, hessian[part, part])
        values[:, part] = now
        gradient += changes @ hessian[part]


def _refit_scales(weight: Tensor, hessian: Tensor, rounded: Rounded, rounding: Rounding) -> Rounded:
    """The best scales for the codes as they are, for those rows that gain by them."""
    groups = rounded.scale.shape[1]
    rows = max(1, _SYSTEMS // max(groups * groups, weight.shape[1]))
    scale = torch.cat(
        [
            _least_squares(weight[part], hessian, rounded.values[part], rounded.scale[part], rounding)
            for part in torch.arange(len(weight), device=weight.device).split(rows)
        ]
    )
    refit = rescale(rounded, rounding.store(torch.where(scale * rounded.scale > 0, scale, rounded.scale)), rounding)
    better = output_error(weight, refit.values, hessian) < output_error(weight, rounded.values, hessian)
    keep = better[:, None]
    values, scale = torch.where(keep, refit.values, rounded.values), torch.where(keep, refit.scale, rounded.scale)
    return Rounded(values, scale, rounded.shift, rounded.latent)


def _least_squares(weight: Tensor, hessian: Tensor, values: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
    """Per row, the scales ``s`` that minimize ``(w - B s) H (w - B s)^T``: ``B`` has group ``g`` in column ``g``."""
    rows, columns = weight.shape
    size, groups = rounding.group(columns), scale.shape[1]
    each = spread(scale, size, columns)
    levels = values / torch.where(each != 0, each, torch.inf)
    system = weight.new_empty(rows, groups, groups)
    for g in range(groups):
        part = slice(g * size, min((g + 1) * size, columns))
        system[:, :, g] = sum_groups((levels[:, part] @ hessian[part]) * levels, size)
    target = sum_groups((weight @ hessian) * levels, size)
    # a group without a level other than zero has an empty equation: its scale stays
    empty = system.diagonal(dim1=1, dim2=2) <= 0
    system = system + torch.diag_embed(empty.float())
    ridge = 1e-6 * system.diagonal(dim1=1, dim2=2).mean(1)
    system = system + ridge[:, None, None] * torch.eye(groups, device=weight.device)
    with _one_thread():
        solved, failed = torch.linalg.solve_ex(system, target)
    usable = solved.isfinite() & ~empty & (failed == 0)[:, None]
    return torch.where(usable, solved, scale)


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch solves several systems at once, and MKL then gets those of more than 128 unknowns wrong: see the test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
