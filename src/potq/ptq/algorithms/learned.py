"""A quantized weight that can be learned: its codes through a latent float weight, its scales through their logarithms.

Values and gradients are those of :mod:`potq.numerics.fake_quantize`. The alternative for few levels, a Gumbel-softmax over
them (GSQ, 2604.18556), holds and trains a logit for every level of every weight: eight times the memory at 3 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from potq.numerics.trellis import SUBSETS
from potq.ptq.algorithms.rounding import Rounded, Rounding, nearest_values, round_to_nearest

_HALVINGS = 3  # of the way from a latent row to its path, before it starts on the path itself


class LearnedWeight(nn.Module):
    """Starts as ``rounded``, exactly; calling it yields the weight ``(out, in)``."""

    def __init__(self, rounded: Rounded, rounding: Rounding, *, codes: bool = True) -> None:
        super().__init__()
        self.latent = nn.Parameter(_start(rounded, rounding), requires_grad=codes)
        self.log_scale = nn.Parameter(torch.zeros_like(rounded.scale), requires_grad=rounding.fine)
        self._start, self._shift, self._rounding = rounded.scale, rounded.shift, rounding

    @property
    def step(self) -> float:
        """The mean distance from a level to the next that a weight can take: the unit of the latent weight's learning rate.

        With a trellis, where no other weight changes its part of the path, that is the next level of the subset.
        """
        levels, apart = self._rounding.levels, SUBSETS if self._rounding.trellis else 1
        return float(self._start.abs().mean() * (levels[apart:] - levels[:-apart]).mean())

    def forward(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scale = self._start * self.log_scale.exp()
        return nearest_values(self.latent, scale, self._shift, self._rounding, dtype)

    @torch.no_grad()
    def rounded(self) -> Rounded:
        """What was learned, under scales that the format can hold."""
        scale = self._start
        if self._rounding.fine:
            scale = self._rounding.store(scale * self.log_scale.exp())
        return round_to_nearest(self.latent.detach(), scale, self._shift, self._rounding)


def _start(rounded: Rounded, rounding: Rounding) -> Tensor:
    """The latent weights as far as they are rounded to what they were; what else they are near to is of no use."""
    same = round_to_nearest(rounded.latent, rounded.scale, rounded.shift, rounding).values == rounded.values
    if not rounding.trellis:
        return torch.where(same, rounded.latent, rounded.values)
    latent = rounded.latent
    for _ in range(_HALVINGS):  # a path is the nearest one, or it is not, as a whole
        if bool(same.all()):
            return latent
        latent = torch.where(same.all(1, keepdim=True), latent, (latent + rounded.values) / 2)
        same = round_to_nearest(latent, rounded.scale, None, rounding).values == rounded.values
    return torch.where(same.all(1, keepdim=True), latent, rounded.values)
