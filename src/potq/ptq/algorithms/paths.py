"""GPTQ and its refinement where a row's levels form a path through a trellis (:mod:`potq.numerics.trellis`).

GPTQ moves the weights to come by every error that is made. So what a level costs depends on the whole path before it, and
Viterbi's search, which assumes the opposite, does not apply. Here every state of the trellis keeps its own best path, with
the weights to come as this path left them (per-survivor processing: Raheli, Polydoros and Tzou, IEEE Trans. Commun. 43(2),
1995). Along a path the squares of GPTQ's errors add up to the output error ``(w - v) H (w - v)^T``. So paths are compared by
what is minimized. It is a search with eight candidates where GPTQ is greedy.

The alternative is the best path of a block of columns, and the block's error handed on to the next one (QTIP, 2406.11235,
sec. 3.2). Nothing makes up for errors within a block then; ``docs/trellis.md`` has the difference.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from potq import native
from potq.numerics.functional import spread
from potq.numerics.trellis import FAR, STATES, best_path, predecessors, state_before, subsets
from potq.ptq.algorithms.gptq import fit_groups
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.rounding import Rounded, Rounding

_BLOCK = 112  # columns that are decided at a time
_AHEAD = 16  # and those behind them that the decision looks at
_WINDOW = 32  # columns whose path is searched anew at a time; the next ones overlap by half


@dataclass(frozen=True)
class Window:
    """Some columns of all rows: ``weight`` and ``step`` (what a level of 1 is worth there), float32 ``(rows, columns)``.

    ``factor`` is the columns' part of the upper Cholesky factor of an inverse Hessian.
    """

    weight: Tensor
    step: Tensor
    factor: Tensor


def compensated_paths(weight: Tensor, hessian: Hessian, rounding: Rounding) -> Rounded:
    """GPTQ along paths; arguments and errors of :func:`potq.ptq.algorithms.gptq.gptq`. Columns keep their order."""
    columns = weight.shape[1]
    _, factor = hessian.factor(ordered=False)
    scale, _ = fit_groups(weight, hessian.diagonal, rounding)
    step = spread(scale, rounding.group(columns), columns)
    latent, values = weight.clone(), torch.empty_like(weight)
    states = torch.zeros(len(weight), dtype=torch.uint8, device=weight.device)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        seen = slice(start, min(stop + _AHEAD, columns))
        window = Window(latent[:, seen], step[:, seen], factor[seen, seen])
        index, errors = survivors(window, rounding.levels, states, stop - start)
        values[:, start:stop] = step[:, start:stop] * rounding.levels[index.int()]
        latent[:, start:stop] = values[:, start:stop] + errors * factor.diagonal()[start:stop]
        latent[:, stop:] -= errors @ factor[start:stop, stop:]
    return Rounded(values, scale, None, latent)


def sweep_paths(values: Tensor, gradient: Tensor, hessian: Tensor, rounded: Rounded, rounding: Rounding) -> None:
    """Once over all windows of columns: each gets the best path that begins and ends as the one that it had.

    A row's window changes only for the better. ``values`` and ``gradient``, ``(v - w) H``, both ``(rows, columns)``, follow;
    ``values`` are on paths under the scales of ``rounded``.
    """
    columns = values.shape[1]
    step = spread(rounded.scale, rounding.group(columns), columns)
    index, _ = best_path(values, step, rounding.levels)
    for start in range(0, columns, _WINDOW // 2):
        part = slice(start, min(start + _WINDOW, columns))
        inside = hessian[part, part]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(inside))
        best = values[:, part] - gradient[:, part] @ inverse  # if the grid did not matter
        window = Window(best, step[:, part], torch.linalg.cholesky(inverse, upper=True))
        ends = state_before(index, part.stop) if part.stop < columns else None
        found, _ = survivors(window, rounding.levels, state_before(index, start), best.shape[1], ends)
        change = window.step * rounding.levels[found.int()] - values[:, part]
        gain = (change * (2 * gradient[:, part] + change @ inside)).sum(1, keepdim=True)
        change = torch.where(gain < 0, change, 0.0)
        index[:, part] = torch.where(gain < 0, found, index[:, part])
        values[:, part] += change
        values[:, part] = window.step * rounding.levels[index[:, part].int()]
        gradient += change @ hessian[part]


def survivors(
    window: Window, levels: Tensor, states: Tensor, kept: int, ends: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The best of eight surviving paths of every row: the numbers of its levels (uint8), and GPTQ's errors.

    Both are ``(rows, kept)``, of the window's first columns.

    Args:
        levels: float32, ascending, at least 8, in units of ``window.step``.
        states: uint8 ``(rows,)``: where the paths begin; becomes where they are behind the columns that are kept.
        ends: uint8 ``(rows,)``: where they have to be behind the last column, if that matters.
    """
    weight, step, factor = window.weight.contiguous(), window.step.contiguous(), window.factor.contiguous()
    if not native.serves(weight.device):
        return _survivors(Window(weight, step, factor), levels, states, kept, ends)
    errors = weight.new_empty(len(weight), kept)
    index = torch.empty(errors.shape, dtype=torch.uint8, device=weight.device)
    described = native.PathColumns(levels.data_ptr(), len(weight), len(levels), weight.shape[1], kept)
    native.library().potq_compensate_paths(
        ctypes.byref(described), weight.data_ptr(), step.data_ptr(), factor.data_ptr(),
        None if ends is None else ends.data_ptr(), states.data_ptr(), index.data_ptr(), errors.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return index, errors


def _survivors(window: Window, levels: Tensor, states: Tensor, kept: int, ends: Tensor | None) -> tuple[Tensor, Tensor]:
    (rows, columns), device = window.weight.shape, window.weight.device
    before, subset, each = predecessors(device), subsets(device), torch.arange(rows, device=device)[:, None]
    cost = window.weight.new_full((rows, STATES), FAR)
    cost[each[:, 0], states.long()] = 0
    left = window.weight[:, None].expand(rows, STATES, columns)
    errors = window.weight.new_empty(columns, rows, STATES)
    index, second = (torch.empty(columns, rows, STATES, dtype=torch.int64, device=device) for _ in range(2))
    for t in range(columns):
        u, x, step = window.factor[t], left[:, :, t], window.step[:, t, None, None]
        distance, number = (x[:, :, None] - step * levels).square().view(rows, STATES, -1, 4).min(2)
        ways = cost[:, before] + distance[:, before, subset] * (1.0 / (u[t] * u[t]))
        second[t] = (ways[:, 1] < ways[:, 0]).long()
        cost = ways[:, 0].minimum(ways[:, 1])
        origin, kind = _taken(before, second[t]), _taken(subset, second[t])
        index[t] = 4 * number[each, origin, kind] + kind
        errors[t] = (x[each, origin] - step[:, 0] * levels[index[t]]) / u[t]
        left = left[each, origin]
        left[:, :, t + 1 :] -= errors[t][:, :, None] * u[t + 1 :]
    at = cost.argmin(1) if ends is None else ends.long()
    path, lost = torch.empty(rows, columns, dtype=torch.uint8, device=device), torch.empty_like(window.weight)
    for t in reversed(range(columns)):
        if t + 1 == kept:
            states.copy_(at)
        path[:, t], lost[:, t] = (of[t][each[:, 0], at] for of in (index, errors))
        at = _taken(before, second[t])[each[:, 0], at]
    return path[:, :kept].contiguous(), lost[:, :kept].contiguous()


def _taken(ways: Tensor, second: Tensor) -> Tensor:
    """Of the ways into every state, ``(2, STATES)``, those that each row took."""
    return torch.where(second > 0, ways[1], ways[0])
