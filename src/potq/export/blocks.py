"""Block types of other engines: which schemes they hold exactly, and a weight's codes and scales in them.

A block is some consecutive weights of a row that share a scale ``d``: ``w = d * level[code]``, with integer levels. Ours
is ``w = s * L / reference``. So a block holds our weights if for some ``shift`` every ``L / 2**shift`` is one of its levels
and ``d = s / reference * 2**shift`` is one of its scales. Only powers of two leave the significant bits of a float16 scale
alone. Levels and groups are a matter of the scheme (:func:`obstacle`), the range of a scale one of the weights
(:func:`misfit`): most float16 scales near 2**-10 lose bits when they are divided by 64. Where a block does not use
all levels, another shift may help.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from potq.errors import ExportError
from potq.numerics.functional import decode_scale
from potq.numerics.grid import Grid
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight

_WEIGHTS_AT_ONCE = 1 << 20  # what is computed for one is some 20 bytes
E8M0_UNIT = 128  # an E8M0 byte b under E2M1's levels, in units of one half, is the scale 2**(b - 128)
E8M0_LARGEST = 254  # 255 is NaN
_NORMAL = torch.finfo(torch.float32).tiny  # a processor may be told to take what is smaller for zero
_STORED = {"float16": torch.float16, "float32": torch.float32, "e8m0": torch.uint8}


@dataclass(frozen=True)
class BlockType:
    """A block format.

    Attributes:
        name: what its engine calls it.
        weights: how many weights share a scale.
        levels: the level of every code; None: a code that is not used.
        scale: what a scale can be: ``"float16"`` or ``"float32"``; or ``"e8m0"``, ``2**(byte - 128)``.
        bits_per_weight: stored bits, scales included.
        padded: whether a row may end within a block, which is filled up.
    """

    name: str
    weights: int
    levels: tuple[int | None, ...]
    scale: Literal["float16", "float32", "e8m0"]
    bits_per_weight: float
    padded: bool = False

    @property
    def width(self) -> int:
        """Bits of a code."""
        return (len(self.levels) - 1).bit_length()

    def bits(self, columns: int) -> float:
        """Stored bits per weight of rows of ``columns`` weights, padding included."""
        return self.bits_per_weight * math.ceil(columns / self.weights) * self.weights / columns


@dataclass(frozen=True)
class Blocks:
    """Rows of a weight as codes and scales of a block type.

    Attributes:
        codes: uint8 ``(rows, blocks, weights of a block)``.
        scales: ``(rows, blocks)``: float16, float32, or uint8 for E8M0.
    """

    codes: Tensor
    scales: Tensor


def obstacle(scheme: QuantScheme, kind: BlockType, columns: int) -> str | None:
    """Why ``kind`` cannot hold rows of ``columns`` weights in ``scheme`` exactly; None: it can, given the range."""
    if not _shifts(scheme.grid, kind):
        return "its levels are not among the type's"
    if kind.scale == "e8m0" and (scheme.scale_dtype != "e8m0" or scheme.row_scale):
        return "its scales are not powers of two"
    if columns % kind.weights and not kind.padded:
        return f"rows of {columns} weights do not divide into blocks of {kind.weights}"
    if scheme.group(columns) % kind.weights and not (kind.padded and scheme.group(columns) == columns):
        return f"its groups of {scheme.group(columns)} do not divide into blocks of {kind.weights}"
    return None


def misfit(weight: QuantizedWeight, kind: BlockType) -> str | None:
    """Why ``kind`` cannot hold ``weight`` ``(out, in)`` exactly; None: it can."""
    why = obstacle(weight.scheme, kind, weight.shape[1])
    if why is None and not all(_holds(part, kind) for part in _parts(weight)):
        why = f"a scale is beyond the range of {kind.name}'s"
    return why


def encode(weight: QuantizedWeight, kind: BlockType) -> Iterator[Blocks]:
    """``weight`` ``(out, in)`` in blocks, some rows at a time.

    Raises:
        ExportError: ``kind`` cannot hold it, which :func:`misfit` says beforehand.
    """
    for part in _parts(weight):
        blocks = _encoded(part, kind)
        if blocks is None:
            raise ExportError(f"a scale is beyond the range of {kind.name}'s")
        yield blocks


def _parts(weight: QuantizedWeight) -> Iterator[QuantizedWeight]:
    step = max(1, _WEIGHTS_AT_ONCE // weight.shape[1])
    return (weight.rows(slice(start, start + step)) for start in range(0, weight.shape[0], step))


def _holds(weight: QuantizedWeight, kind: BlockType) -> bool:
    first = _shifts(weight.scheme.grid, kind)[0]  # under it every level has a code; mostly the scales fit, too
    _, exact = _stored_scale(_block_scales(weight, kind) * 2.0**first, kind)
    return bool(exact.all()) or _encoded(weight, kind) is not None


def _encoded(weight: QuantizedWeight, kind: BlockType) -> Blocks | None:
    scheme = weight.scheme
    ours = weight.codes()
    filling = ours[:, -1:].expand(-1, -weight.shape[1] % kind.weights)  # a code that the block has anyway
    ours = torch.cat([ours, filling], dim=1).unflatten(1, (-1, kind.weights)).int()
    scale = _block_scales(weight, kind)
    codes = torch.empty(ours.shape, dtype=torch.uint8)
    stored = torch.empty(scale.shape, dtype=_STORED[kind.scale])
    missing = torch.ones(scale.shape, dtype=torch.bool)
    for shift in _shifts(scheme.grid, kind):
        code, known = _translation(scheme.grid, kind, shift)
        fitting, exact = _stored_scale(scale * 2.0**shift, kind)
        taken = missing & exact & known[ours].all(dim=2)
        codes[taken] = code[ours[taken]]
        stored[taken] = fitting[taken]
        missing &= ~taken
        if not missing.any():
            return Blocks(codes, stored)
    return None


def _block_scales(weight: QuantizedWeight, kind: BlockType) -> Tensor:
    """What one level of each block is worth, float64 ``(rows, blocks)``, exact."""
    scheme, (rows, columns) = weight.scheme, weight.shape
    scale = decode_scale(weight.scale, weight.row_scale).double().expand(rows, -1)
    per_group, blocks = math.ceil(scheme.group(columns) / kind.weights), math.ceil(columns / kind.weights)
    return scale.repeat_interleave(per_group, dim=1)[:, :blocks] / scheme.grid.reference


def _stored_scale(scale: Tensor, kind: BlockType) -> tuple[Tensor, Tensor]:
    """Float64 scales as the type stores them, and which of them it stores exactly."""
    if kind.scale == "float16":
        half = scale.to(torch.float16)
        return half, half.double() == scale
    if kind.scale == "float32":
        single = scale.to(torch.float32)
        return single, (single.double() == scale) & ((single == 0) | (single.abs() >= _NORMAL))
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2**exponent, and a power of two has the mantissa 1/2
    byte = exponent - 1 + E8M0_UNIT
    return byte.clamp(0, E8M0_LARGEST).to(torch.uint8), (mantissa == 0.5) & (byte >= 0) & (byte <= E8M0_LARGEST)


@cache
def _shifts(grid: Grid, kind: BlockType) -> tuple[int, ...]:
    """Shifts to try: one under which the type has every level of the grid, then others for blocks that lack some levels.

    Empty: no power has them all.
    """
    largest = max(abs(level) for level in kind.levels if level is not None)
    possible = range(-largest.bit_length(), max(map(abs, grid.levels)).bit_length() + 1)
    whole = [shift for shift in possible if bool(_translation(grid, kind, shift)[1].all())]
    if not whole:
        return ()
    best = max(whole)  # the largest scale, farthest from float16's subnormal numbers
    return tuple(sorted(possible, key=lambda shift: abs(shift - best)))


@cache
def _translation(grid: Grid, kind: BlockType, shift: int) -> tuple[Tensor, Tensor]:
    """By our code: the type's code (uint8) of ``level / 2**shift``, and whether there is one (bool)."""
    code_of = {level: code for code, level in reversed(list(enumerate(kind.levels)))}
    shifted = [_shifted(level, shift) for level in grid.levels]
    found = [None if level is None else code_of.get(level) for level in shifted]
    return torch.tensor([code or 0 for code in found], dtype=torch.uint8), torch.tensor([code is not None for code in found])


def _shifted(level: int, shift: int) -> int | None:
    """``level / 2**shift`` if it is an integer."""
    if shift <= 0:
        return level << -shift
    return None if level % (1 << shift) else level >> shift
