"""Reference math: quantize, dequantize. One definition, shared by PTQ, QAT and every kernel's tests.

A weight ``(out, in)`` is cut into groups of ``group_size`` inputs (the last may be shorter). With a group's stored scale
``s`` and the grid's integer levels ``L``::

    code = nearest level to w / s * reference        w_hat = s * level / reference

``level / reference`` is exact in float32 (at most 13 significant bits) and so is its product with a float16 scale (11
more) or an E8M0 one, hence dequantization has one right answer and every backend must give it. (The one exception: E8M0
scales below 2**-88 under the 6- and 7-bit PoT grids, whose least products underflow.) Scales are rounded to their stored
format *before* the weights are rounded to them.

With ``scheme.row_scale`` a row has a float16 scale ``r`` of its own and ``s = r * 2**e``, exact as well; a zero ``r`` is a
zero row.

With ``scheme.signed_scale`` a scale may be negative, which turns its group's levels around: a table with one level more on
one side has it, group by group, on the side where it serves, at no bits.

With ``scheme.trellis`` not every sequence of codes can be stored, and a row as a whole goes to the nearest that can
(:mod:`potq.numerics.trellis`); what a code is worth stays the same.

Ties go to the larger magnitude (two's complement and tables: to the larger level). A zero scale marks a group that is zero
or too small for float16: it dequantizes to zeros. E8M0 has no zero; its least scale, 2**-127, stands in (levels of a
zero-free grid are then some 1e-38). A float16 scale beyond 65504 saturates; :func:`potq.quantize` refuses such a weight.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from potq.numerics.grid import Grid
from potq.numerics.scheme import QuantScheme, RoundingMode, ScaleDtype
from potq.numerics.trellis import path_codes

E8M0_BIAS = 127
_LUT_LIMIT = 1 << 15  # largest magnitude that is looked up; wider grids search their thresholds


def encode_scale(scale: Tensor, scale_dtype: ScaleDtype) -> Tensor:
    """Round float32 scales to their stored format: float16, or uint8 exponents (E8M0, positive, nearest in the log domain).

    A zero scale is float16 zero, or the smallest E8M0 exponent (2**-127); too large a scale saturates.
    """
    if scale_dtype == "float16":
        largest = torch.finfo(torch.float16).max
        return scale.clamp(-largest, largest).to(torch.float16)
    exponent = torch.log2(scale.double()).round().clamp_(-E8M0_BIAS, E8M0_BIAS)
    return (exponent + E8M0_BIAS).to(torch.uint8)


def decode_scale(stored: Tensor, row_scale: Tensor | None = None) -> Tensor:
    """Float32 value of stored scales (float16, or uint8 E8M0; ``(out, groups)``), exactly.

    With ``row_scale`` (float16 ``(out, 1)``) it is their product, exact where it is a normal float32 number.
    """
    if stored.dtype == torch.uint8:
        bits = stored.int()  # the byte is float32's exponent field; 0 is the subnormal 2**-127
        scale = torch.where(bits > 0, bits << 23, 1 << 22).view(torch.float32)
    else:
        scale = stored.float()
    return scale if row_scale is None else scale * row_scale.float()


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


def spread(parameter: Tensor, group: int, columns: int) -> Tensor:
    """Per-group values ``(rows, groups)`` as per-column ones ``(rows, columns)``, ``group`` columns sharing one."""
    return parameter.repeat_interleave(group, dim=1)[:, :columns]


def group_index(columns: int, group: int, device: torch.device | None = None) -> Tensor:
    """The group that each column is in, int32 ``(columns,)``."""
    return torch.arange(columns, dtype=torch.int32, device=device) // group


def sum_groups(matrix: Tensor, group: int) -> Tensor:
    """Per-column values ``(rows, columns)`` summed to per-group ones ``(rows, groups)``."""
    padded = torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % group))
    return padded.view(len(matrix), padded.shape[1] // group, group).sum(2)


def quantize(weight: Tensor, scale: Tensor, scheme: QuantScheme, row_scale: Tensor | None = None) -> Tensor:
    """Codes (uint8, shape of ``weight``) of the level nearest to each weight under the stored ``scale``.

    With a trellis: of the levels on the path nearest to each row.

    Args:
        weight: ``(out, in)``, any float dtype.
        scale: stored scales of shape ``scheme.scale_shape(out, in)``, float16 or uint8.
        row_scale: float16 ``(out, 1)``, where the scheme has it.
    """
    if scheme.trellis:
        step = spread(decode_scale(scale), scheme.group(weight.shape[1]), weight.shape[1])
        return path_codes(weight.detach().float(), step, codebook(scheme, weight.device)[0], scheme.grid)
    parts = split_groups(weight.detach().float(), scheme)
    scales = split_scales(decode_scale(scale, row_scale), parts)
    codes = [nearest_code(in_level_units(part, s, scheme.grid), scheme) for part, s in zip(parts, scales, strict=True)]
    return join_groups(codes, len(weight))


def dequantize(codes: Tensor, scale: Tensor, scheme: QuantScheme, row_scale: Tensor | None = None) -> Tensor:
    """Float32 weights of ``codes`` (uint8, ``(out, in)``) under the stored ``scale`` and ``row_scale``; exact."""
    parts = split_groups(level_table(scheme.grid, codes.device)[codes.int()], scheme)
    scales = split_scales(decode_scale(scale, row_scale), parts)
    return join_groups([part * s for part, s in zip(parts, scales, strict=True)], len(codes))


def in_level_units(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """``weight / scale * reference``, and 0 where the scale is 0."""
    return (weight / torch.where(scale != 0, scale, torch.inf)).mul_(grid.reference)


def nearest_code(x: Tensor, scheme: QuantScheme) -> Tensor:
    """Codes (uint8) of the nearest levels to ``x`` (float32, in level units)."""
    grid = scheme.grid
    if grid.encoding == "twos-complement":
        return nearest_integer(x, grid).to(torch.int16).bitwise_and_(2**grid.bits - 1).to(torch.uint8)
    if grid.encoding == "table":
        return nearest_index(x, grid, scheme.rounding)
    index = nearest_index(x.abs(), grid, scheme.rounding)
    # -0 is never written: a negative weight that rounds to magnitude 0 takes the code of +0
    sign = (x < 0) & (index > 0) if grid.magnitudes[0] == 0 else x < 0
    return index + sign.to(torch.uint8) * len(grid.magnitudes)


def nearest_level(x: Tensor, scheme: QuantScheme) -> Tensor:
    """The nearest levels themselves (float32 integers), without the detour over codes: what a scale search sums up."""
    grid = scheme.grid
    if grid.encoding == "twos-complement":
        return nearest_integer(x, grid)
    if scheme.rounding == "nearest" and _fits_lut(grid):
        if grid.encoding == "table":
            return torch.take(_entry_lut(grid, x.device), lut_position(x, grid))
        return torch.copysign(torch.take(_entry_lut(grid, x.device), lut_position(x.abs(), grid)), x)
    return level_table(grid, x.device)[nearest_code(x, scheme).int()] * grid.reference


def nearest_integer(x: Tensor, grid: Grid) -> Tensor:
    """``x`` rounded to the integers of a two's complement grid (float32); ``floor(x + 0.5)`` would round 0.49999997 up."""
    return torch.floor(x * 2).mul_(0.5).ceil_().clamp_(-(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1)


def nearest_index(x: Tensor, grid: Grid, rounding: RoundingMode) -> Tensor:
    """Index (uint8) of what is nearest to ``x``, of any shape: a table's level, or the magnitude nearest to ``x >= 0``."""
    if rounding == "nearest" and _fits_lut(grid):
        return torch.take(index_lut(grid, x.device), lut_position(x, grid))
    found = torch.bucketize(x, thresholds(grid, rounding, x.device), right=True, out_int32=True)
    return _first_index(grid, x.device)[found]


def _entries(grid: Grid) -> tuple[int, ...]:
    """What a value is rounded to: the levels of a table, or a sign-magnitude grid's magnitudes."""
    return grid.table or grid.magnitudes


def _fits_lut(grid: Grid) -> bool:
    entries = _entries(grid)
    return max(-entries[0], entries[-1]) < _LUT_LIMIT


def lut_position(x: Tensor, grid: Grid) -> Tensor:
    """Position of ``x`` in :func:`index_lut`: every threshold between integers is a multiple of one half.

    A magnitude's (``x >= 0``) counts from 0, a table's from its least level.
    """
    if grid.encoding == "table":
        low, high = 2 * grid.table[0], 2 * grid.table[-1]
        return (x * 2).floor_().clamp_(low, high).sub_(low).long()
    return (x * 2).clamp_(max=2 * grid.magnitudes[-1]).long()  # torch.take needs int64


@lru_cache(maxsize=64)
def index_lut(grid: Grid, device: torch.device) -> Tensor:
    """``lut[lut_position(x)]`` = index of the magnitude or level nearest to ``x``; faster than searching thresholds."""
    low = 2 * min(_entries(grid)[0], 0)
    halves = torch.arange(low, 2 * _entries(grid)[-1] + 1, device=device) / 2
    return _first_index(grid, device)[torch.bucketize(halves, thresholds(grid, "nearest", device), right=True)]


@lru_cache(maxsize=64)
def _entry_lut(grid: Grid, device: torch.device) -> Tensor:
    return torch.tensor(_entries(grid), dtype=torch.float32, device=device)[index_lut(grid, device).int()]


@lru_cache(maxsize=64)
def thresholds(grid: Grid, rounding: RoundingMode, device: torch.device) -> Tensor:
    """The values between neighbouring magnitudes (ascending, repeats merged) or levels of a table at which rounding changes.

    ``"nearest"``: arithmetic midpoints. ``"log"``: geometric ones, zero standing one octave below the least magnitude.
    """
    pairs = list(pairwise(sorted(set(_entries(grid)))))
    if rounding == "log":
        middle = [((low or high / 2) * high) ** 0.5 for low, high in pairs]
    else:
        middle = [(low + high) / 2 for low, high in pairs]
    return torch.tensor(middle, dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _first_index(grid: Grid, device: torch.device) -> Tensor:
    """Index of the first entry of each distinct magnitude (or level of a table)."""
    entries = _entries(grid)
    first = [entries.index(entry) for entry in sorted(set(entries))]
    return torch.tensor(first, dtype=torch.uint8, device=device)


@lru_cache(maxsize=64)
def level_table(grid: Grid, device: torch.device) -> Tensor:
    """``level / reference`` of every code, float32 and exact."""
    table = torch.tensor(grid.levels, dtype=torch.float64, device=device) / grid.reference
    return table.float()


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # it is kept, and must serve autograd whoever asks first
def codebook(scheme: QuantScheme, device: torch.device) -> tuple[Tensor, Tensor]:
    """The distinct levels, ascending, and the boundaries between neighbours; float32, in units of the scale.

    ``levels[torch.bucketize(w / scale, boundaries, right=True)]`` is ``w / scale`` rounded as the scheme rounds. Where a tie
    goes to the level below, the number after it is the boundary.
    """
    grid = scheme.grid
    levels = torch.tensor(sorted(set(grid.levels)), dtype=torch.float64, device=device) / grid.reference
    boundaries = (levels[1:] + levels[:-1]) / 2
    if scheme.rounding == "log":
        above = thresholds(grid, "log", device).double() / grid.reference
        around_zero = torch.zeros(0 if grid.has_zero else 1, dtype=torch.float64, device=device)
        boundaries = torch.cat([-above.flip(0), around_zero, above])
    found = boundaries.float()
    if grid.encoding == "sign-magnitude":
        found = torch.where(found < 0, found.nextafter(torch.zeros_like(found)), found)
    return levels.float(), found


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite; ``isfinite`` would make a copy as large as the tensor."""
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
