"""Reference math: quantize, dequantize, fake_quantize. One definition, shared by PTQ, QAT and every kernel's tests.

A weight ``(out, in)`` is cut into groups of ``group_size`` inputs (the last may be shorter). With a group's stored scale
``s`` and the grid's integer levels ``L``::

    code = nearest level to w / s * reference        w_hat = s * level / reference

``level / reference`` is exact in float32 (at most 13 significant bits) and so is its product with a float16 scale (11
more) or an E8M0 one, hence dequantization has one right answer and every backend must give it. (The one exception: E8M0
scales below 2**-88 under the 6- and 7-bit PoT grids, whose least products underflow.) Scales are rounded to their stored
format *before* the weights are rounded to them.

Ties go to the larger magnitude (two's complement: to the larger level). A zero scale marks a group that is zero or too
small for float16: it dequantizes to zeros. E8M0 has no zero; its least scale, 2**-127, stands in (levels of a zero-free
grid are then some 1e-38). A float16 scale beyond 65504 saturates; :func:`potq.quantize` refuses such a weight.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from potq.grid import Grid
from potq.scheme import QuantScheme, Rounding, ScaleDtype

E8M0_BIAS = 127
_LUT_LIMIT = 1 << 15  # largest magnitude that is looked up; wider PoT grids search their thresholds


def encode_scale(scale: Tensor, scale_dtype: ScaleDtype) -> Tensor:
    """Round positive float32 scales to their stored format: float16, or uint8 exponents (E8M0, nearest in the log domain).

    A zero scale is float16 zero, or the smallest E8M0 exponent (2**-127); too large a scale saturates.
    """
    if scale_dtype == "float16":
        return scale.clamp(max=torch.finfo(torch.float16).max).to(torch.float16)
    exponent = torch.log2(scale.double()).round().clamp_(-E8M0_BIAS, E8M0_BIAS)
    return (exponent + E8M0_BIAS).to(torch.uint8)


def decode_scale(stored: Tensor) -> Tensor:
    """Float32 value of stored scales (float16, or uint8 E8M0), exactly."""
    if stored.dtype == torch.uint8:
        bits = stored.int()  # the byte is float32's exponent field; 0 is the subnormal 2**-127
        return torch.where(bits > 0, bits << 23, 1 << 22).view(torch.float32)
    return stored.float()


def split_groups(matrix: Tensor, scheme: QuantScheme) -> list[Tensor]:
    """Views of ``(out, in)`` as ``(out, groups, size)``: the full groups, then the shorter last one if there is one."""
    if scheme.group_size == "tensor":
        return [matrix.reshape(1, 1, -1)]
    columns = matrix.shape[1]
    size = scheme.group(columns)
    full = columns - columns % size
    parts = [matrix[:, :full].unflatten(1, (full // size, size))]
    return parts + [matrix[:, None, full:]] if full < columns else parts


def join_groups(parts: list[Tensor], rows: int) -> Tensor:
    """Inverse of :func:`split_groups`."""
    return torch.cat([part.reshape(rows, -1) for part in parts], dim=1)


def split_scales(scale: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """Scales ``(out, groups)`` as ``(out, groups, 1)`` views that broadcast against :func:`split_groups`'s parts."""
    return [piece.unsqueeze(-1) for piece in scale.split([part.shape[1] for part in parts], dim=1)]


def quantize(weight: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
    """Codes (uint8, shape of ``weight``) of the level nearest to each weight under the stored ``scale``.

    Args:
        weight: ``(out, in)``, any float dtype.
        scale: stored scales of shape ``scheme.scale_shape(out, in)``, float16 or uint8.
    """
    parts = split_groups(weight.detach().float(), scheme)
    scales = split_scales(decode_scale(scale), parts)
    codes = [nearest_code(in_level_units(part, s, scheme.grid), scheme) for part, s in zip(parts, scales, strict=True)]
    return join_groups(codes, len(weight))


def dequantize(codes: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
    """Float32 weights of ``codes`` (uint8, ``(out, in)``) under the stored ``scale``; exact."""
    parts = split_groups(level_table(scheme.grid, codes.device)[codes.int()], scheme)
    scales = split_scales(decode_scale(scale), parts)
    return join_groups([part * s for part, s in zip(parts, scales, strict=True)], len(codes))


def fake_quantize(weight: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
    """``dequantize(quantize(weight))`` in the weight's dtype, with a straight-through gradient (2601.02298 eq. 6).

    The gradient passes unchanged where the weight lies within the grid and is zero where it was clipped.
    """
    result: Tensor = _StraightThrough.apply(weight, scale, scheme)  # type: ignore[no-untyped-call]  # torch's stub
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
        parts = split_groups(weight.float(), scheme)
        levels = scheme.grid.levels
        low, high = min(levels) / scheme.grid.reference, max(levels) / scheme.grid.reference
        inside = [
            (part >= low * s) & (part <= high * s)
            for part, s in zip(parts, split_scales(decode_scale(scale), parts), strict=True)
        ]
        ctx.save_for_backward(join_groups(inside, len(weight)))
        return dequantize(quantize(weight, scale, scheme), scale, scheme).to(weight.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch's stub lacks the attribute
        return grads[0] * inside.reshape(grads[0].shape), None, None


def in_level_units(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """``weight / scale * reference``, and 0 where the scale is 0."""
    return (weight / torch.where(scale > 0, scale, torch.inf)).mul_(grid.reference)


def nearest_code(x: Tensor, scheme: QuantScheme) -> Tensor:
    """Codes (uint8) of the nearest levels to ``x`` (float32, in level units)."""
    grid = scheme.grid
    if grid.encoding == "twos-complement":
        return nearest_integer(x, grid).to(torch.int16).bitwise_and_(2**grid.bits - 1).to(torch.uint8)
    index = nearest_index(x.abs(), grid, scheme.rounding)
    # -0 is never written: a negative weight that rounds to magnitude 0 takes the code of +0
    sign = (x < 0) & (index > 0) if grid.magnitudes[0] == 0 else x < 0
    return index + sign.to(torch.uint8) * len(grid.magnitudes)


def nearest_level(x: Tensor, scheme: QuantScheme) -> Tensor:
    """The nearest levels themselves (float32 integers), without the detour over codes: what a scale search sums up."""
    grid = scheme.grid
    if grid.encoding == "sign-magnitude" and scheme.rounding == "nearest" and grid.magnitudes[-1] < _LUT_LIMIT:
        magnitude = torch.take(_magnitude_lut(grid, x.device), lut_position(x.abs(), grid))
        return torch.copysign(magnitude, x)
    if grid.encoding == "twos-complement":
        return nearest_integer(x, grid)
    return level_table(grid, x.device)[nearest_code(x, scheme).int()] * grid.reference


def nearest_integer(x: Tensor, grid: Grid) -> Tensor:
    """``x`` rounded to the integers of a two's complement grid (float32); ``floor(x + 0.5)`` would round 0.49999997 up."""
    return torch.floor(x * 2).mul_(0.5).ceil_().clamp_(-(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1)


def nearest_index(x: Tensor, grid: Grid, rounding: Rounding) -> Tensor:
    """Index (uint8) into ``grid.magnitudes`` of the magnitude nearest to ``x >= 0``, of any shape."""
    if rounding == "nearest" and grid.magnitudes[-1] < _LUT_LIMIT:
        return torch.take(index_lut(grid, x.device), lut_position(x, grid))
    found = torch.bucketize(x, thresholds(grid, rounding, x.device), right=True, out_int32=True)
    return _first_index(grid, x.device)[found]


def lut_position(x: Tensor, grid: Grid) -> Tensor:
    """Position of ``x >= 0`` in :func:`index_lut`: every threshold between integer magnitudes is a multiple of one half."""
    return (x * 2).clamp_(max=2 * grid.magnitudes[-1]).long()  # torch.take needs int64


@lru_cache(maxsize=64)
def index_lut(grid: Grid, device: torch.device) -> Tensor:
    """``lut[floor(2x)]`` = index of the magnitude nearest to ``x``; faster than searching thresholds."""
    halves = torch.arange(2 * grid.magnitudes[-1] + 1, device=device) / 2
    return _first_index(grid, device)[torch.bucketize(halves, thresholds(grid, "nearest", device), right=True)]


@lru_cache(maxsize=64)
def _magnitude_lut(grid: Grid, device: torch.device) -> Tensor:
    return torch.tensor(grid.magnitudes, dtype=torch.float32, device=device)[index_lut(grid, device).int()]


@lru_cache(maxsize=64)
def thresholds(grid: Grid, rounding: Rounding, device: torch.device) -> Tensor:
    """The values between neighbouring magnitudes (ascending, repeats merged) at which rounding changes.

    ``"nearest"``: arithmetic midpoints. ``"log"``: geometric ones, zero standing one octave below the least magnitude.
    """
    distinct = sorted(set(grid.magnitudes))
    pairs = list(pairwise(distinct))
    if rounding == "log":
        middle = [((low or high / 2) * high) ** 0.5 for low, high in pairs]
    else:
        middle = [(low + high) / 2 for low, high in pairs]
    return torch.tensor(middle, dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _first_index(grid: Grid, device: torch.device) -> Tensor:
    """Index of the first entry of each distinct magnitude."""
    first = [grid.magnitudes.index(m) for m in sorted(set(grid.magnitudes))]
    return torch.tensor(first, dtype=torch.uint8, device=device)


@lru_cache(maxsize=64)
def level_table(grid: Grid, device: torch.device) -> Tensor:
    """``level / reference`` of every code, float32 and exact."""
    table = torch.tensor(grid.levels, dtype=torch.float64, device=device) / grid.reference
    return table.float()
