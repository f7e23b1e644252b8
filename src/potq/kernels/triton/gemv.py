"""One row of activations times a packed weight: ``y[n] = sum_k x[k] * scale[n, k / group] * level[n, k]``.

A program takes ``BLOCK_N`` rows of the weight and a part of their columns, ``BLOCK_WORDS`` neighbouring words at a time.
Weights are exact in float32. Every column of a block has a sum of its own, so that threads exchange nothing before the end
(summing words first, to scale them once, took a shuffle for every three weights). Parts are added
by :mod:`potq.kernels.triton.finish`, in their order: the
result does not depend on which program ends first, which atomic additions would make it do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from potq.kernels.triton.codes import fields, load_scale, load_words, top_shift
from potq.kernels.triton.levels import float_levels


@triton.jit
def gemv_kernel(
    x_ptr, low_ptr, top_ptr, scale_ptr, table_ptr, partial_ptr, rows, words, scale_stride, words_per_split,
    BITS: tl.constexpr, PAIRS: tl.constexpr, GROUP: tl.constexpr, E8M0: tl.constexpr,
    KIND: tl.constexpr, STRIDE: tl.constexpr, HAS_ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_WORDS: tl.constexpr,
):  # fmt: skip
    """``partial[split, n]`` in float32; ``x`` is float16 or bfloat16 ``(columns,)``."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    end = min(words, (split + 1) * words_per_split)
    total = tl.zeros([BLOCK_N, BLOCK_WORDS, 2 * PAIRS], tl.float32)
    for start in range(split * words_per_split, end, BLOCK_WORDS):
        word = start + tl.arange(0, BLOCK_WORDS)
        inside = word < end
        mask = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None]
        low, top = load_words(low_ptr + at * words, top_ptr + at * (words // 2), word[None, :], mask, BITS)
        scale = load_scale(scale_ptr + at * scale_stride, (word * (2 * PAIRS) // GROUP)[None, :], mask, E8M0)
        shift = top_shift(tl.broadcast_to(word[None, :], [BLOCK_N, BLOCK_WORDS]), PAIRS, BITS)
        index, sign = fields(low, top, shift, BITS, PAIRS)
        level = float_levels(index, sign, table_ptr, KIND, BITS, STRIDE, HAS_ZERO)
        columns = word[:, None] * (2 * PAIRS) + tl.arange(0, 2 * PAIRS)[None, :]
        x = tl.load(x_ptr + columns, mask=inside[:, None], other=0.0).to(tl.float32)
        total += level * scale[:, :, None] * x[None, :, :]
    tl.store(
        partial_ptr + split * rows + row,
        tl.sum(tl.reshape(total, [BLOCK_N, BLOCK_WORDS * 2 * PAIRS]), axis=1),
        mask=row < rows,
    )
