"""What an algorithm knows of a format: how a group gets its scale, and which values its weights can take.

``value = scale * (level + shift)``: ``levels`` ascend, in units of the scale; ``shift`` is None but for formats with zero
points. Algorithms see this and nothing else of a format, so that every grid, and any other table, runs under every one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from potq.numerics.fake_quantize import round_op, round_path, round_values
from potq.numerics.functional import codebook, decode_scale, encode_scale, spread
from potq.numerics.row_scale import choose_row_scale
from potq.numerics.scale_search import choose_scale
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight


class Rounding(Protocol):
    """A format as algorithms see it."""

    @property
    def levels(self) -> Tensor:
        """Float32 ``(n,)``, ascending, in units of the scale."""

    @property
    def boundaries(self) -> Tensor:
        """Float32 ``(n - 1,)``: where rounding changes from one level to the next."""

    def group(self, columns: int) -> int:
        """Columns that share a scale, in a row of so many."""

    def fit(self, block: Tensor, importance: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and shift, float32 ``(rows, 1)``, for one group ``(rows, size)``; errors weighted by ``(size,)``."""

    def store(self, scale: Tensor) -> Tensor:
        """The nearest scales ``(rows, groups)`` that the format can hold."""

    @property
    def trellis(self) -> bool:
        """Whether a row's levels have to form a path (:mod:`potq.numerics.trellis`); such formats have no shift."""

    @property
    def fine(self) -> bool:
        """Whether the format's scales are dense enough to be learned by small steps (float16), not octaves."""


@dataclass(frozen=True)
class Rounded:
    """A weight ``(rows, columns)`` under way to its packed form.

    Attributes:
        values: what it is worth on the grid.
        scale: float32 ``(rows, groups)``.
        shift: float32 ``(rows, groups)``, in units of the scale, or None.
        latent: the float weight that was rounded, earlier errors made up for: where each entry stood at its turn.
    """

    values: Tensor
    scale: Tensor
    shift: Tensor | None
    latent: Tensor


class SchemeRounding:
    """A :class:`QuantScheme` as algorithms see it; ``row_scale`` (float16 ``(out, 1)``) if it has one.

    ``device`` is where the weights are, torch's default one if not given.
    """

    def __init__(self, scheme: QuantScheme, row_scale: Tensor | None = None, device: torch.device | None = None) -> None:
        self.scheme, self.row_scale = scheme, row_scale
        self.levels, self.boundaries = codebook(scheme, device or torch.get_default_device())
        self._group = scheme.model_copy(update={"group_size": "row", "row_scale": False})

    @classmethod
    def of(cls, weight: Tensor, scheme: QuantScheme, importance: Tensor | None) -> SchemeRounding:
        """For ``weight`` ``(out, in)``; row scales are chosen here, once, by weighted squared error."""
        row_scale = choose_row_scale(weight, scheme, importance)[1] if scheme.row_scale else None
        return cls(scheme, row_scale, weight.device)

    def rows(self, rows: slice) -> SchemeRounding:
        """For some rows of the weight."""
        row_scale = None if self.row_scale is None else self.row_scale[rows]
        return SchemeRounding(self.scheme, row_scale, self.levels.device)

    @property
    def trellis(self) -> bool:
        return self.scheme.trellis

    @property
    def fine(self) -> bool:
        return self.scheme.scale_dtype == "float16"

    def group(self, columns: int) -> int:
        return self.scheme.group(columns)

    def fit(self, block: Tensor, importance: Tensor) -> tuple[Tensor, Tensor | None]:
        row = self._row()
        stored = choose_scale(block / torch.where(row > 0, row, torch.inf), self._group, "weighted", importance=importance)
        return decode_scale(stored) * row, None

    def store(self, scale: Tensor) -> Tensor:
        return self.decode(self.encode(scale))

    def decode(self, stored: Tensor) -> Tensor:
        """Float32 value of stored scales, row scales included."""
        return decode_scale(stored, self.row_scale)

    def encode(self, scale: Tensor) -> Tensor:
        """Scales as they are stored: float16 or uint8 ``(rows, groups)``."""
        row = self._row()
        scale = scale / torch.where(row > 0, row, torch.inf)
        return encode_scale(scale if self.scheme.signed_scale else scale.clamp(min=0), self.scheme.scale_dtype)

    def pack(self, rounded: Rounded) -> QuantizedWeight:
        """The packed weight."""
        return QuantizedWeight.from_scale(rounded.values, self.encode(rounded.scale), self.scheme, self.row_scale)

    def unpack(self, weight: QuantizedWeight) -> Rounded:
        """The inverse of :meth:`pack`; a packed weight no longer knows where its entries stood."""
        values = weight.dequantize()
        return Rounded(values, self.decode(weight.scale), None, values)

    def _row(self) -> Tensor:
        return self.levels.new_ones(1, 1) if self.row_scale is None else self.row_scale.float()


def nearest_values(
    weight: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    rounding: Rounding,
    dtype: torch.dtype,
    to_grid: Callable[..., Tensor] = round_op,
) -> Tensor:
    """``weight`` rounded under ``scale`` and ``shift`` ``(rows, groups)``, with gradients for the first two."""
    group = rounding.group(weight.shape[1])
    if rounding.trellis:
        return round_path(weight, scale, rounding.levels, group, dtype)
    return to_grid(weight, scale, shift, rounding.levels, rounding.boundaries, group, dtype)


def round_to_nearest(weight: Tensor, scale: Tensor, shift: Tensor | None, rounding: Rounding) -> Rounded:
    """Every entry of ``weight`` by itself, or every row with a trellis, under ``scale`` and ``shift`` ``(rows, groups)``."""
    # no gradients, so the plain function: the first call of an operator imports torch's compiler
    return Rounded(nearest_values(weight, scale, shift, rounding, torch.float32, round_values), scale, shift, weight)


def joined(parts: Sequence[Rounded]) -> Rounded:
    """The rows of all ``parts``, one after another."""
    if len(parts) == 1:
        return parts[0]
    shifts = [part.shift for part in parts if part.shift is not None]
    return Rounded(
        torch.cat([part.values for part in parts]),
        torch.cat([part.scale for part in parts]),
        torch.cat(shifts) if shifts else None,
        torch.cat([part.latent for part in parts]),
    )


def rescale(rounded: Rounded, scale: Tensor, rounding: Rounding) -> Rounded:
    """The same codes under another scale."""
    columns = rounded.values.shape[1]
    group = rounding.group(columns)
    old = spread(rounded.scale, group, columns)
    levels = rounded.values / torch.where(old != 0, old, torch.inf)
    # levels are recovered to the last bit but one; the nearest exact ones make values that the format can hold
    exact = round_to_nearest(levels * spread(scale, group, columns), scale, rounded.shift, rounding)
    return replace(exact, latent=rounded.latent)
