"""Trellis-coded quantization: a grid of ``bits`` at ``bits - 1`` stored bits a weight (Marcellin and Fischer, IEEE Trans.
Commun. 38(1), 1990).

The levels of a grid, ascending, are dealt to four subsets in turn, so that a subset's levels are far apart. A weight stores
one bit of a path, ``b``, and the number ``l`` of a level in its subset: the code ``2 l + b``. Which subset it is follows
from its own bit of the path and those of the three weights before it in its row, by Ungerboeck's code of eight states
(IEEE Trans. Inf. Theory 28(1), 1982, table I: parity-check polynomials 13 and 04)::

    subset = 2 (b[t] ^ b[t-2] ^ b[t-3]) + b[t-1]        level = levels[4 l[t] + subset]        b is 0 before a row begins

Of every eight levels a weight so has four to choose from, and by its choice decides on those of the next ones. The best path
is found by dynamic programming (Viterbi): of the ways into a state only the best is kept. Decoding needs no state: the three
shifts are of bits that are stored.

On the CPU the compiled loops of ``csrc/fit/trellis.cpp`` search; elsewhere, and without the library, torch does, with the
same bits as result.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from potq import native
from potq.numerics.grid import Grid
from potq.numerics.packing import pack, unpack

STATES = 8
SUBSETS = 4
FAR = 1e30  # the cost of a state that no path reaches


def expand(stored: Tensor, grid: Grid) -> Tensor:
    """The codes of ``grid`` that ``stored`` ones (uint8 ``(rows, columns)``, a bit fewer) stand for.

    Example:
        >>> import torch, potq
        >>> expand(torch.tensor([[1, 0, 0, 0, 2]], dtype=torch.uint8), potq.QuantScheme("pot2t").grid)
        tensor([[5, 6, 5, 5, 0]], dtype=torch.uint8)
    """
    path = stored & 1
    behind = [torch.nn.functional.pad(path, (steps, 0))[:, : path.shape[1]] for steps in (1, 2, 3)]
    subset = (path ^ behind[1] ^ behind[2]) << 1 | behind[0]
    return _codes(grid, stored.device)[((stored >> 1) << 2 | subset).int()]


def expanded(packed: Tensor, grid: Grid, columns: int) -> Tensor:
    """Packed codes of a trellis as packed codes of its grid, a bit more each: what kernels without a trellis can read."""
    return pack(expand(unpack(packed, grid.bits - 1, columns), grid), grid.bits)


def contract(codes: Tensor, grid: Grid) -> Tensor:
    """The inverse of :func:`expand`, for codes that are on a path, as :func:`best_path` finds them."""
    index = _indices(grid, codes.device)[codes.int()]
    path = torch.nn.functional.pad(index[:, 1:] & 1, (0, 1))  # a subset's low bit is the path's bit of the weight before
    behind = torch.nn.functional.pad(path, (3, 0))
    path[:, -1] = (index[:, -1] >> 1 & 1) ^ behind[:, -3] ^ behind[:, -4]
    return (index >> 2) << 1 | path


def state_before(index: Tensor, column: int) -> Tensor:
    """The states, uint8 ``(rows,)``, in which paths come to a column that they have; ``index`` is :func:`best_path`'s."""
    bits = torch.nn.functional.pad(index[:, : column + 1] & 1, (2, 0))[:, -3:]
    return bits[:, 2] | bits[:, 1] << 1 | bits[:, 0] << 2


def path_codes(weight: Tensor, step: Tensor, levels: Tensor, grid: Grid) -> Tensor:
    """Codes of ``grid``, uint8, of the :func:`best_path`; its arguments."""
    return _codes(grid, weight.device)[best_path(weight, step, levels)[0].int()]


def best_path(weight: Tensor, step: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """For every row the path of least ``sum (weight - step level)^2``: the numbers of its levels, and that sum.

    Args:
        weight: float32 ``(rows, columns)``.
        step: float32, of that shape: what a level of 1 is worth there. Errors are weighted by scaling both by a root.
        levels: float32, ascending, at least 8 of them.

    Returns:
        uint8 ``(rows, columns)``, and float32 ``(rows,)``.
    """
    weight, step, levels = weight.contiguous(), step.contiguous(), levels.contiguous()
    if not native.serves(weight.device):
        return _best_path(weight, step, levels)
    index = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    cost = weight.new_empty(len(weight))
    native.library().potq_best_paths(
        levels.data_ptr(), len(levels), weight.data_ptr(), step.data_ptr(), *weight.shape,
        index.data_ptr(), cost.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return index, cost


def best_cost(weight: Tensor, step: Tensor, levels: Tensor) -> Tensor:
    """The second result of :func:`best_path` alone, in a fraction of the time."""
    weight, step, levels = weight.contiguous(), step.contiguous(), levels.contiguous()
    if not native.serves(weight.device):
        return _best_path(weight, step, levels)[1]
    cost = weight.new_empty(len(weight))
    native.library().potq_best_paths(
        levels.data_ptr(), len(levels), weight.data_ptr(), step.data_ptr(), *weight.shape,
        None, cost.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return cost


def _best_path(weight: Tensor, step: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    state, before = torch.arange(STATES, device=weight.device), predecessors(weight.device)
    cost = weight.new_full((rows, STATES), FAR)
    cost[:, 0] = 0
    came, chosen = [], []  # for every column: from which of its predecessors, and by which level of each subset
    for t in range(columns):
        error = (weight[:, t, None] - step[:, t, None] * levels).square().view(rows, -1, SUBSETS)
        least, number = error.min(1)
        ways = cost[:, before] + least[:, subsets(weight.device)]
        cost = ways[:, 0].minimum(ways[:, 1])
        came.append((ways[:, 1] < ways[:, 0]).long())
        chosen.append(number)
    least, at = cost.min(1)
    index = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    each = torch.arange(rows, device=weight.device)
    for t in reversed(range(columns)):
        way = came[t][each, at]
        subset = subsets(weight.device)[way, state[at]]
        index[:, t] = 4 * chosen[t][each, subset] + subset
        at = before[way, at]
    return index, least


@lru_cache(maxsize=8)
def predecessors(device: torch.device) -> Tensor:
    """int64 ``(2, STATES)``: the two states from which each can be reached. A state is the last three bits of the path."""
    state = torch.arange(STATES, device=device)
    return torch.stack([state >> 1, (state >> 1) + STATES // 2])


@lru_cache(maxsize=8)
def subsets(device: torch.device) -> Tensor:
    """int64 ``(2, STATES)``: the subset of levels on the way from each of :func:`predecessors` to the state."""
    path = torch.stack([torch.arange(STATES, device=device), torch.arange(STATES, device=device) + STATES])
    return (path ^ path >> 2 ^ path >> 3) % 2 * 2 + (path >> 1) % 2


@lru_cache(maxsize=64)
def _codes(grid: Grid, device: torch.device) -> Tensor:
    """The code of every level, from the least one up."""
    order = sorted(range(2**grid.bits), key=grid.levels.__getitem__)
    return torch.tensor(order, dtype=torch.uint8, device=device)


@lru_cache(maxsize=64)
def _indices(grid: Grid, device: torch.device) -> Tensor:
    """The inverse of :func:`_codes`."""
    codes = _codes(grid, device).long()
    return torch.empty_like(codes).index_copy_(0, codes, torch.arange(len(codes), device=device)).to(torch.uint8)
