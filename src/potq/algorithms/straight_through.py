"""A quantized weight that can be learned: its codes through a latent float weight, its scales through their logarithms.

The forward pass is exact, ``scale * nearest level(latent / scale)``; the backward one passes gradients straight through the
rounding (2601.02298 eq. 6), and to a scale what LSQ gives it (1902.08153 eq. 3). The alternative for few levels, a
Gumbel-softmax over them (GSQ, 2604.18556), holds and trains a logit for every level of every weight: eight times the memory
at 3 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from potq.algorithms.rounding import Rounded, Rounding, round_to_nearest, spread


class LearnedWeight(nn.Module):
    """Starts as ``rounded``, exactly; calling it yields the weight ``(out, in)``."""

    def __init__(self, rounded: Rounded, rounding: Rounding, *, codes: bool = True) -> None:
        super().__init__()
        same = round_to_nearest(rounded.latent, rounded.scale, rounded.shift, rounding).values == rounded.values
        self.latent = nn.Parameter(torch.where(same, rounded.latent, rounded.values), requires_grad=codes)
        self.log_scale = nn.Parameter(torch.zeros_like(rounded.scale), requires_grad=rounding.fine)
        self._start, self._shift, self._rounding = rounded.scale, rounded.shift, rounding

    @property
    def step(self) -> float:
        """The mean distance between neighbouring levels: the unit of the latent weight's learning rate."""
        return float(self._start.mean() * self._rounding.levels.diff().mean())

    def forward(self) -> Tensor:
        scale = self._start * self.log_scale.exp()
        result: Tensor = _RoundStraightThrough.apply(self.latent, scale, self._shift, self._rounding)  # type: ignore[no-untyped-call]  # torch's stub
        return result

    @torch.no_grad()
    def rounded(self) -> Rounded:
        """What was learned, under scales that the format can hold."""
        scale = self._start
        if self._rounding.fine:
            scale = self._rounding.store(scale * self.log_scale.exp())
        return round_to_nearest(self.latent.detach(), scale, self._shift, self._rounding)


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, shift: Tensor | None, rounding: Rounding) -> Tensor:
        values = round_to_nearest(latent, scale, shift, rounding).values
        each = spread(scale, rounding, latent.shape[1])
        safe = torch.where(each > 0, each, torch.inf)
        x, level = latent / safe, values / safe
        centre = x if shift is None else x - spread(shift, rounding, latent.shape[1])
        inside = (centre >= _edge(rounding.levels, 0)) & (centre <= _edge(rounding.levels, -1))
        # d value / d scale = level - x where the weight follows the scale, level where it is clipped
        ctx.save_for_backward(inside, (level - x * inside).bfloat16())
        ctx.size, ctx.groups = rounding.group(latent.shape[1]), scale.shape[1]
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inside, slope = ctx.saved_tensors
        padded = torch.nn.functional.pad(grads[0] * slope, (0, ctx.groups * ctx.size - inside.shape[1]))
        return grads[0] * inside, padded.view(len(inside), ctx.groups, ctx.size).sum(2), None, None


def _edge(levels: Tensor, end: int) -> Tensor:
    """Half a step beyond the first or last level: as far as a weight still has a gradient."""
    inner = levels[1] if end == 0 else levels[-2]
    return levels[end] + (levels[end] - inner) / 2
