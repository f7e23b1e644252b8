"""A quantized weight that can be learned: its codes through a latent float weight, its scales through their logarithms.

The forward pass is exact, ``scale * nearest level(latent / scale)``; the backward one passes gradients straight through the
rounding (2601.02298 eq. 6), and to a scale what LSQ gives it (1902.08153 eq. 3). The alternative for few levels, a
Gumbel-softmax over them (GSQ, 2604.18556), holds and trains a logit for every level of every weight: eight times the memory
at 3 bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from potq import native
from potq.algorithms.columns import Block, describe
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

    def forward(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scale = self._start * self.log_scale.exp()
        result: Tensor = _RoundStraightThrough.apply(self.latent, scale, self._shift, self._rounding, dtype)  # type: ignore[no-untyped-call]  # torch's stub
        return result

    @torch.no_grad()
    def rounded(self) -> Rounded:
        """What was learned, under scales that the format can hold."""
        scale = self._start
        if self._rounding.fine:
            scale = self._rounding.store(scale * self.log_scale.exp())
        return round_to_nearest(self.latent.detach(), scale, self._shift, self._rounding)


class _RoundStraightThrough(torch.autograd.Function):
    """The compiled loops of ``csrc/straight_through.cpp``, or the same in torch; sums of gradients differ in their order."""

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, scale: Tensor, shift: Tensor | None, rounding: Rounding, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(latent, scale)
        ctx.shift, ctx.rounding = shift, rounding
        if not _compiled(latent, dtype):
            return round_to_nearest(latent, scale, shift, rounding).values.to(dtype)
        values = torch.empty_like(latent, dtype=dtype)
        with _described(latent, scale, shift, rounding) as weight:
            native.library().potq_round(
                weight, latent.data_ptr(), values.data_ptr(), dtype == torch.bfloat16, torch.get_num_threads()
            )
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        (latent, scale), shift, rounding = ctx.saved_tensors, ctx.shift, ctx.rounding
        edges = torch.stack([_edge(rounding.levels, 0), _edge(rounding.levels, -1)])
        if not _compiled(latent, grads[0].dtype):
            return *_gradients(latent, scale, shift, rounding, edges, grads[0].float()), None, None, None
        gradient, to_scale = grads[0].contiguous(), scale.new_empty(len(latent), scale.shape[1])
        to_latent = torch.empty_like(latent) if ctx.needs_input_grad[0] else None
        with _described(latent, scale, shift, rounding) as weight:
            native.library().potq_round_backward(
                weight,
                latent.data_ptr(),
                edges.data_ptr(),
                gradient.data_ptr(),
                gradient.dtype == torch.bfloat16,
                None if to_latent is None else to_latent.data_ptr(),
                to_scale.data_ptr(),
                torch.get_num_threads(),
            )
        return to_latent, to_scale, None, None, None


def _compiled(latent: Tensor, dtype: torch.dtype) -> bool:
    return native.missing() is None and latent.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


@contextmanager
def _described(latent: Tensor, scale: Tensor, shift: Tensor | None, rounding: Rounding) -> Iterator[Any]:
    """The library's description of the weight, while its tensors are held."""
    columns = latent.shape[1]
    group = torch.arange(columns, dtype=torch.int32) // rounding.group(columns)
    # one scale for the whole tensor counts as one for every row
    each = scale.expand(len(latent), -1).contiguous()
    shift = None if shift is None else shift.expand_as(each).contiguous()
    yield ctypes.byref(describe(Block(rounding, each, shift, group)))


def _gradients(
    latent: Tensor, scale: Tensor, shift: Tensor | None, rounding: Rounding, edges: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    columns, groups = latent.shape[1], scale.shape[1]
    each = spread(scale, rounding, columns)
    safe = torch.where(each > 0, each, torch.inf)
    x, level = latent / safe, round_to_nearest(latent, scale, shift, rounding).values / safe
    centre = x if shift is None else x - spread(shift, rounding, columns)
    inside = (centre >= edges[0]) & (centre <= edges[1])
    # d value / d scale = level - x where the weight follows the scale, level where it is clipped
    slope = gradient * (level - x * inside)
    padded = torch.nn.functional.pad(slope, (0, groups * rounding.group(columns) - columns))
    return gradient * inside, padded.view(len(latent), groups, -1).sum(2)


def _edge(levels: Tensor, end: int) -> Tensor:
    """Half a step beyond the first or last level: as far as a weight still has a gradient."""
    inner = levels[1] if end == 0 else levels[-2]
    return levels[end] + (levels[end] - inner) / 2
