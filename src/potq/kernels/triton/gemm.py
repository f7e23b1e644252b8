"""Several rows of activations times a packed weight, on the tensor cores.

``y[m, n] = sum over groups g of scale[n, g] * (x level^T over the columns of g)[m, n]``.

A program takes ``BLOCK_M x BLOCK_N`` outputs and one of several parts of the columns. Each step decodes a block of levels,
``BLOCK_N x BLOCK_K``, in registers, exact in the type of ``x``. ``BLOCK_K`` divides the group size, so a step's products,
which the tensor cores sum in float32, are scaled by one number for each row of the weight. A level is decoded once for
``BLOCK_M`` rows of activations.

Rejected: scaling the levels before the product, which rounds them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from potq.kernels.triton.codes import halves, load_fields, load_scale, multiply_pairs, twice
from potq.kernels.triton.levels import float_levels, power_pairs


@triton.jit
def _levels(
    index, top, table_ptr,
    BITS: tl.constexpr, STRIDE: tl.constexpr, BASE: tl.constexpr, LIFT: tl.constexpr,
    KIND: tl.constexpr, DTYPE: tl.constexpr, MANTISSA: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Levels in ``DTYPE``: ``(BLOCK_N, octets, 4)`` twice, of even and of odd columns."""
    if KIND == "powers":
        pairs = power_pairs(index, top, STRIDE, BASE, MANTISSA)
        if LIFT != 1:  # at once: bfloat16's smallest powers times activations would not be normal in float32
            pairs = multiply_pairs(pairs, twice(tl.full(pairs.shape, LIFT, tl.float32).to(DTYPE)), DTYPE, PACKED)
        return halves(pairs, DTYPE)
    even, odd = float_levels(index, top, table_ptr, KIND, BITS, STRIDE, BASE)
    return even.to(DTYPE), odd.to(DTYPE)


@triton.jit
def _columns(even, odd, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Even and odd columns in their order, ``(BLOCK_N, BLOCK_K)``.

    They become floats behind the reshape only. If it ended in the product, Triton (3.6, 3.7) would put it behind shared
    memory, and then refuse the layout of four axes there.
    """
    even, odd = even.to(tl.int16, bitcast=True), odd.to(tl.int16, bitcast=True)
    return tl.reshape(tl.join(even, odd), [BLOCK_N, BLOCK_K]).to(DTYPE, bitcast=True)


@triton.jit
def gemm_kernel(
    x_ptr, low_ptr, top_ptr, scale_ptr, table_ptr, partial_ptr, count, rows, octets, scale_stride, steps, steps_per_split,
    BITS: tl.constexpr, GROUP: tl.constexpr, E8M0: tl.constexpr, STRIDE: tl.constexpr, BASE: tl.constexpr,
    LIFT: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr, MANTISSA: tl.constexpr, PACKED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``partial[split, m, n]`` in float32; ``x`` is ``DTYPE`` ``(count, columns)``, contiguous."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    token = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    at, columns = row.to(tl.int64)[:, None, None], octets * 8
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(split * steps_per_split, min(steps, (split + 1) * steps_per_split)):
        octet = (step * (BLOCK_K // 8) + tl.arange(0, BLOCK_K // 8))[None, :, None]
        index, top = load_fields(low_ptr, top_ptr, at, octet, octets, (at < rows) & (octet < octets), BITS)
        even, odd = _levels(index, top, table_ptr, BITS, STRIDE, BASE, LIFT, KIND, DTYPE, MANTISSA, PACKED)
        level = _columns(even, odd, DTYPE, BLOCK_N, BLOCK_K)
        column = step * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        inside = (token < count)[:, None] & (column < columns)
        x = tl.load(x_ptr + token.to(tl.int64)[:, None] * columns + column, mask=inside, other=0.0)
        scale = load_scale(scale_ptr, row.to(tl.int64) * scale_stride + step * BLOCK_K // GROUP, row < rows, E8M0)
        total += tl.dot(x, tl.trans(level)) * scale[None, :]
    place = (split * count + token).to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(partial_ptr + place, total, mask=(token < count)[:, None] & (row < rows)[None, :])
