"""One row of activations times a packed weight: ``y[n] = sum_k x[k] * scale[n, k / group] * level[n, k]``.

A program takes ``BLOCK_N`` rows of the weight and a part of their columns, ``BLOCK`` neighbouring octets at a time. A thread
multiplies the levels of an octet with eight activations in float32 and scales their sum once. Sums of octets stay in
their threads to the end. Parts are added by :mod:`potq.kernels.triton.finish`, in their order: the result does not depend on
which program ends first, which atomic additions would make it do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from potq.kernels.triton.codes import halves, load_fields, load_scale
from potq.kernels.triton.levels import float_levels


@triton.jit
def gemv_kernel(
    x_ptr, low_ptr, top_ptr, scale_ptr, table_ptr, partial_ptr, rows, octets, scale_stride, octets_per_split,
    BITS: tl.constexpr, GROUP: tl.constexpr, E8M0: tl.constexpr, STRIDE: tl.constexpr, BASE: tl.constexpr,
    LIFT: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``partial[split, n]`` in float32; ``x`` is ``DTYPE`` ``(columns,)``, as pairs."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    end = min(octets, (split + 1) * octets_per_split)
    at = row.to(tl.int64)[:, None, None]
    total = tl.zeros([BLOCK_N, BLOCK], tl.float32)
    for start in range(split * octets_per_split, end, BLOCK):
        octet = (start + tl.arange(0, BLOCK))[None, :, None]
        mask = (at < rows) & (octet < end)
        index, top = load_fields(low_ptr, top_ptr, at, octet, octets, mask, BITS)
        even, odd = float_levels(index, top, table_ptr, KIND, BITS, STRIDE, BASE)
        x = tl.load(x_ptr + octet * 4 + tl.arange(0, 4), mask=octet < end, other=0)
        x_even, x_odd = halves(x, DTYPE)
        products = even * x_even.to(tl.float32) + odd * x_odd.to(tl.float32)
        scale = load_scale(scale_ptr, at * scale_stride + octet * 8 // GROUP, mask, E8M0)
        total += tl.sum(products, axis=2) * tl.reshape(scale, [BLOCK_N, BLOCK])
    tl.store(partial_ptr + split * rows + row, tl.sum(total, axis=1) * LIFT, mask=row < rows)
