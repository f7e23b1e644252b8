"""Dequantization: words and scales to a float16 or bfloat16 matrix, correctly rounded.

``w = scale * level / reference`` is exact in float32; what is stored is that, rounded once: the reference's bits. A thread
takes an octet: it reads a word or a part of one and stores 16 bytes. Two kernels, side by side so that they can be compared:

* grids of powers of two: index and sign are moved into place and multiplied by the lifted scale, two weights an instruction
  (:mod:`potq.kernels.triton.levels`), if the scales allow it (:meth:`~potq.kernels.triton.weight.GpuWeight.lifts`);
* two's complement (convert, subtract, multiply), tables, row scales, and scales out of the ordinary: a float32 product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from potq.errors import ConfigError
from potq.kernels.triton.codes import load_fields, load_scale, multiply_pairs, paired, twice
from potq.kernels.triton.launch import Launch, packed_arithmetic
from potq.kernels.triton.levels import float_levels, power_pairs
from potq.kernels.triton.weight import MANTISSA, TYPES, GpuWeight


class Blocks(NamedTuple):
    """What a program takes of a row: octets at once, and how often."""

    octets: int = 128
    parts: int = 4
    warps: int = 4


BLOCKS = Blocks()


@triton.jit
def _powers_kernel(
    low_ptr, top_ptr, scale_ptr, out_ptr, octets, scale_stride,
    BITS: tl.constexpr, GROUP: tl.constexpr, E8M0: tl.constexpr, STRIDE: tl.constexpr, BASE: tl.constexpr,
    LIFT: tl.constexpr, DTYPE: tl.constexpr, MANTISSA: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """``out`` is the matrix as pairs."""
    row = tl.program_id(0).to(tl.int64)
    for part in tl.static_range(PARTS):
        octet = ((tl.program_id(1) * PARTS + part) * BLOCK + tl.arange(0, BLOCK))[:, None]
        inside = octet < octets
        index, top = load_fields(low_ptr, top_ptr, row, octet, octets, inside, BITS)
        scale = load_scale(scale_ptr, row * scale_stride + octet * 8 // GROUP, inside, E8M0)
        pairs = power_pairs(index, top, STRIDE, BASE, MANTISSA)
        weights = multiply_pairs(pairs, twice((scale * LIFT).to(DTYPE)), DTYPE, PACKED)
        tl.store(out_ptr + row * octets * 4 + octet * 4 + tl.arange(0, 4), weights, mask=inside)


@triton.jit
def _level_kernel(
    low_ptr, top_ptr, scale_ptr, row_scale_ptr, table_ptr, out_ptr, octets, scale_stride,
    BITS: tl.constexpr, GROUP: tl.constexpr, E8M0: tl.constexpr, STRIDE: tl.constexpr, BASE: tl.constexpr,
    LIFT: tl.constexpr, KIND: tl.constexpr, ROW_SCALE: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """The same from levels in float32."""
    row = tl.program_id(0).to(tl.int64)
    row_scale = tl.load(row_scale_ptr + row).to(tl.float32) if ROW_SCALE else 1.0
    for part in tl.static_range(PARTS):
        octet = ((tl.program_id(1) * PARTS + part) * BLOCK + tl.arange(0, BLOCK))[:, None]
        inside = octet < octets
        index, top = load_fields(low_ptr, top_ptr, row, octet, octets, inside, BITS)
        scale = load_scale(scale_ptr, row * scale_stride + octet * 8 // GROUP, inside, E8M0) * row_scale
        even, odd = float_levels(index, top, table_ptr, KIND, BITS, STRIDE, BASE)
        weights = paired((even * LIFT * scale).to(DTYPE), (odd * LIFT * scale).to(DTYPE))
        tl.store(out_ptr + row * octets * 4 + octet * 4 + tl.arange(0, 4), weights, mask=inside)


def launch(weight: GpuWeight, out: Tensor, row_scale: Tensor | None = None, blocks: Blocks = BLOCKS) -> Launch:
    """The call that writes the matrix to ``out`` ``(rows, columns)``, float16 or bfloat16."""
    octets, mantissa = weight.columns // 8, MANTISSA[out.dtype]
    grid, pairs = (weight.rows, triton.cdiv(octets, blocks.octets * blocks.parts)), out.view(torch.int32)
    sizes = octets, weight.scale_stride
    shape, options = {"BLOCK": blocks.octets, "PARTS": blocks.parts}, {"num_warps": blocks.warps}
    if weight.lifts(out.dtype) and row_scale is None:
        constants = weight.constants(mantissa) | shape | {"DTYPE": TYPES[out.dtype]}
        constants |= {"MANTISSA": mantissa, "PACKED": packed_arithmetic()}
        return Launch(_powers_kernel, grid, (*weight.words, weight.scale, pairs, *sizes), constants, options)
    constants = weight.constants(10) | shape | {"DTYPE": TYPES[out.dtype]}
    constants |= {"KIND": weight.form.kind, "ROW_SCALE": row_scale is not None}
    scales = weight.scale, weight.scale if row_scale is None else row_scale
    return Launch(_level_kernel, grid, (*weight.words, *scales, weight.table, pairs, *sizes), constants, options)


def dequantize(weight: GpuWeight, dtype: torch.dtype, row_scale: Tensor | None = None) -> Tensor:
    """The matrix ``(rows, columns)`` in ``dtype``, on the weight's device.

    Args:
        row_scale: float16 ``(rows, 1)``, where the scheme has it.

    Raises:
        ConfigError: another dtype than float16 and bfloat16.
    """
    if dtype not in TYPES:
        raise ConfigError(f"weights are dequantized to float16 or bfloat16, not {str(dtype).removeprefix('torch.')}")
    out = torch.empty(weight.rows, weight.columns, dtype=dtype, device=weight.scale.device)
    launch(weight, out, row_scale).run()
    return out
