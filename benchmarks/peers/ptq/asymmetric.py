"""Asymmetric integers (a zero point in every group) under potq's own algorithms: a peer that potq does not store.

``value = scale * (code - zero)`` with an integer ``zero`` of as many bits as a code, counted in the bits per weight. A zero
point is a choice among ``2**bits`` shifted integer grids, so the exact scale search runs once for each and the best is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potq.numerics.functional import decode_scale, encode_scale, spread
from potq.numerics.scale_search import best_scale
from potq.numerics.scheme import QuantScheme
from potq.ptq.algorithms.rounding import Rounded


@dataclass(frozen=True)
class AsymmetricWeight:
    """What ``pack`` yields: the values, and the parameters they were made with."""

    values: Tensor
    scale: Tensor
    shift: Tensor

    def dequantize(self) -> Tensor:
        return self.values


class AsymmetricRounding:
    """Codes ``0 .. 2**bits - 1`` less a zero point; see :class:`potq.ptq.algorithms.rounding.Rounding`."""

    fine, trellis = True, False

    def __init__(self, bits: int, group_size: int) -> None:
        self.levels = torch.arange(2**bits, dtype=torch.float32)
        self.boundaries = self.levels[1:] - 0.5
        self._size = group_size

    @classmethod
    def of(cls, weight: Tensor, scheme: QuantScheme, importance: Tensor) -> AsymmetricRounding:
        """With the bits and the group size of ``scheme``."""
        return cls(scheme.grid.bits, scheme.group(weight.shape[1]))

    def group(self, columns: int) -> int:
        return min(self._size, columns)

    def fit(self, block: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        best = torch.full((len(block), 1), torch.inf)
        scale, shift = torch.zeros(len(block), 1), torch.zeros(len(block), 1)
        for zero in self.levels.tolist():
            found = decode_scale(best_scale(block, self.levels - zero, importance, "float16"))[:, None]
            code = torch.bucketize(block / found.clamp(min=1e-12) + zero, self.boundaries, right=True)
            error = ((found * (self.levels[code] - zero) - block).square() * importance).sum(1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            scale, shift = torch.where(better, found, scale), torch.where(better, torch.full_like(shift, -zero), shift)
        return scale, shift

    def store(self, scale: Tensor) -> Tensor:
        return decode_scale(encode_scale(scale.clamp(min=0), "float16"))

    def pack(self, rounded: Rounded) -> AsymmetricWeight:
        assert rounded.shift is not None
        columns = rounded.values.shape[1]
        each, shift = (spread(per_group, self.group(columns), columns) for per_group in (rounded.scale, rounded.shift))
        codes = (rounded.values / each.clamp(min=1e-12) - shift).round()
        assert bool((((codes >= 0) & (codes < len(self.levels))) | (each == 0)).all()), "a value off the grid"
        return AsymmetricWeight(rounded.values, rounded.scale, rounded.shift)

    def unpack(self, weight: AsymmetricWeight) -> Rounded:
        return Rounded(weight.values, weight.scale, weight.shift, weight.values)


def bits_per_weight(bits: int, group_size: int) -> float:
    """A code, and per group a float16 scale and a zero point of as many bits as a code."""
    return bits + (16 + bits) / group_size
