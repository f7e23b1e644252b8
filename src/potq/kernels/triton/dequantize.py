"""Dequantization: words and scales to a float16, bfloat16 or float32 matrix, correctly rounded.

``w = scale * level / reference`` is exact in float32; what is stored is that, rounded once: the reference's bits. One
program takes ``BLOCK`` words of a row. Three forms, side by side so that they can be compared:

* power-of-two grids in 16 bits: the exponents are added, two weights an instruction (:mod:`potq.kernels.triton.exponent`);
* two's complement: shift, mask, convert, subtract the zero point, multiply;
* any other grid, and float32: a look-up in the table of levels, multiply.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from potq.errors import ConfigError
from potq.kernels.triton.codes import fields, fields_of_pairs, load_scale, load_words, top_shift
from potq.kernels.triton.exponent import add_exponents, is_regular, multiply, scale_bits
from potq.kernels.triton.launch import Launch
from potq.kernels.triton.levels import float_levels
from potq.kernels.triton.weight import GpuWeight

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
MANTISSA = {torch.float16: 10, torch.bfloat16: 7}


@triton.jit
def _exponent_kernel(
    low_ptr, top_ptr, scale_ptr, row_scale_ptr, out_ptr, words, scale_stride,
    BITS: tl.constexpr, PAIRS: tl.constexpr, GROUP: tl.constexpr, E8M0: tl.constexpr, ROW_SCALE: tl.constexpr,
    STRIDE: tl.constexpr, HAS_ZERO: tl.constexpr, REACH: tl.constexpr,
    DTYPE: tl.constexpr, MANTISSA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out`` is the matrix as int32: a pair of neighbouring columns each."""
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = word < words
    low, top = load_words(low_ptr + row * words, top_ptr + row * (words // 2), word, inside, BITS)
    index, sign = fields_of_pairs(low, top, top_shift(word, PAIRS, BITS), BITS, PAIRS)
    scale = load_scale(scale_ptr + row * scale_stride, word * (2 * PAIRS) // GROUP, inside, E8M0)
    if ROW_SCALE:
        scale *= tl.load(row_scale_ptr + row).to(tl.float32)
    bits = scale_bits(scale, DTYPE)
    irregular = 1 - is_regular(bits, REACH, MANTISSA).to(tl.int32)
    pairs = tl.arange(0, PAIRS)[None, :]
    place = out_ptr + row * words * PAIRS + word[:, None] * PAIRS + pairs
    if tl.max(irregular, axis=0) == 0:
        tl.store(place, add_exponents(index, sign, bits[:, None], BITS, STRIDE, HAS_ZERO, MANTISSA), mask=inside[:, None])
    else:
        tl.store(place, multiply(index, sign, scale[:, None], BITS, STRIDE, HAS_ZERO, DTYPE), mask=inside[:, None])


@triton.jit
def _level_kernel(
    low_ptr, top_ptr, scale_ptr, row_scale_ptr, table_ptr, out_ptr, words, scale_stride,
    BITS: tl.constexpr, PAIRS: tl.constexpr, GROUP: tl.constexpr, E8M0: tl.constexpr, ROW_SCALE: tl.constexpr,
    INTEGER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One column at a time: a two's complement integer, or an entry of ``table``, times the scale."""
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = word < words
    low, top = load_words(low_ptr + row * words, top_ptr + row * (words // 2), word, inside, BITS)
    index, sign = fields(low, top, top_shift(word, PAIRS, BITS), BITS, PAIRS)
    scale = load_scale(scale_ptr + row * scale_stride, word * (2 * PAIRS) // GROUP, inside, E8M0)
    if ROW_SCALE:
        scale *= tl.load(row_scale_ptr + row).to(tl.float32)
    level = float_levels(index, sign, table_ptr, "integer" if INTEGER else "table", BITS, 0, False)
    columns = tl.arange(0, 2 * PAIRS)[None, :]
    place = out_ptr + row * words * (2 * PAIRS) + word[:, None] * (2 * PAIRS) + columns
    tl.store(place, (level * scale[:, None]).to(out_ptr.dtype.element_ty), mask=inside[:, None])


def launch(weight: GpuWeight, out: Tensor, row_scale: Tensor | None = None) -> Launch:
    """The call that writes the matrix to ``out`` ``(rows, columns)``, float16, bfloat16 or float32."""
    words = weight.words.low.shape[1]
    block = min(256, triton.next_power_of_2(words))
    form, grid = weight.form, (weight.rows, triton.cdiv(words, block))
    constants = weight.constants(row_scale) | {"BLOCK": block}
    sources = *weight.words, weight.scale, weight.scale if row_scale is None else row_scale
    if form.kind != "exponent" or out.dtype not in MANTISSA:
        arguments = *sources, weight.table, out, words, weight.scale_stride
        return Launch(_level_kernel, grid, arguments, constants | {"INTEGER": form.kind == "integer"})
    constants |= {"DTYPE": TYPES[out.dtype], "MANTISSA": MANTISSA[out.dtype]}
    constants |= {"STRIDE": form.stride, "HAS_ZERO": form.has_zero, "REACH": form.reach}
    return Launch(_exponent_kernel, grid, (*sources, out.view(torch.int32), words, weight.scale_stride), constants)


def dequantize(weight: GpuWeight, dtype: torch.dtype, row_scale: Tensor | None = None) -> Tensor:
    """The matrix ``(rows, columns)`` in ``dtype``, on the weight's device.

    Args:
        row_scale: float16 ``(rows, 1)``, where the scheme has it.

    Raises:
        ConfigError: another dtype than float16, bfloat16 and float32.
    """
    if dtype not in TYPES:
        raise ConfigError(
            f"weights are dequantized to float16, bfloat16 or float32, not {str(dtype).removeprefix('torch.')}"
        )
    out = torch.empty(weight.rows, weight.columns, dtype=dtype, device=weight.scale.device)
    launch(weight, out, row_scale).run()
    return out
