"""A quantized weight that can be learned: its codes through a latent float weight, its scales through their logarithms.

Values and gradients are those of :mod:`potq.numerics.fake_quantize`. The alternative for few levels, a Gumbel-softmax over
them (GSQ, 2604.18556), holds and trains a logit for every level of every weight: eight times the memory at 3 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from potq.numerics.fake_quantize import round_op
from potq.ptq.algorithms.rounding import Rounded, Rounding, round_to_nearest


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
        return float(self._start.abs().mean() * self._rounding.levels.diff().mean())

    def forward(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scale, rounding = self._start * self.log_scale.exp(), self._rounding
        group = rounding.group(self.latent.shape[1])
        result: Tensor = round_op(self.latent, scale, self._shift, rounding.levels, rounding.boundaries, group, dtype)
        return result

    @torch.no_grad()
    def rounded(self) -> Rounded:
        """What was learned, under scales that the format can hold."""
        scale = self._start
        if self._rounding.fine:
            scale = self._rounding.store(scale * self.log_scale.exp())
        return round_to_nearest(self.latent.detach(), scale, self._shift, self._rounding)
