"""The scale of a group whose weights take a path through a trellis: searched together with the path.

Candidates around the group's root mean square are tried, each with its best path. Then, in turns, the scale is fitted to the
path by least squares, and the path searched again under it; the better of both stays. A group is searched as if a row began
with it. Where it stands in its row its path begins in another state, which costs the first weights no more on average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potq.numerics.trellis import best_cost, best_path

CANDIDATES = 16
_RANGE = (0.55, 1.8)  # of the root mean square over the levels'; Gaussian and Student t groups of 64 stay within
_TURNS = 2


def path_scale(block: Tensor, levels: Tensor, importance: Tensor | None, candidates: int | None = None) -> Tensor:
    """Scales that float16 holds, float32 ``(groups,)``, for weights ``(groups, size)``.

    Args:
        levels: in units of the scale, ascending.
        importance: non-negative weights of the errors, ``(groups, size)``.
        candidates: how many are tried first; 16 by default.
    """
    if importance is None:
        root = torch.ones_like(block)
    else:
        reached = (importance * block.square()).sum(1, keepdim=True) > 0
        root = torch.where(reached, importance, 1.0).sqrt()
    weight = block * root
    typical = levels.square().mean().sqrt() * root.square().sum(1).sqrt()
    base = torch.linalg.vector_norm(weight, dim=1) / typical.clamp(min=torch.finfo(torch.float32).tiny)
    best = _stored(base)
    least = best_cost(weight, best[:, None] * root, levels)
    count = candidates or CANDIDATES
    for number in range(count):
        factor = _RANGE[0] * (_RANGE[1] / _RANGE[0]) ** (number / max(count - 1, 1))
        best, least = _better(weight, root, levels, best, least, _stored(base * factor))
    for _ in range(_TURNS):
        level = levels[best_path(weight, best[:, None] * root, levels)[0].int()] * root
        square = level.square().sum(1)
        fitted = torch.where(square > 0, (weight * level).sum(1) / square, best).clamp(min=0)
        best, least = _better(weight, root, levels, best, least, _stored(fitted))
    return best


def _better(
    weight: Tensor, root: Tensor, levels: Tensor, best: Tensor, least: Tensor, tried: Tensor
) -> tuple[Tensor, Tensor]:
    cost = best_cost(weight, tried[:, None] * root, levels)
    better = cost < least
    return torch.where(better, tried, best), torch.where(better, cost, least)


def _stored(scale: Tensor) -> Tensor:
    return scale.clamp(max=torch.finfo(torch.float16).max).half().float()
