"""What every kernel begins with: the fields of a word (see :mod:`potq.kernels.triton.layout`) and the value of a scale.

``fields_of_pairs`` keeps two columns in the two halves of an int32, for arithmetic on both at once; ``fields`` takes them
apart. Shifts are constants once a thread's pairs are known, and each field costs one of them and one mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOW_HALVES = tl.constexpr(0x00010001)  # the lowest bit of both halves


@triton.jit
def top_shift(word, pairs, BITS: tl.constexpr):
    """Where pair 0 of each word has its top bits; ``word`` and the result are int32 of one shape."""
    if BITS == 3:
        return (word & 1) * 8
    return tl.zeros_like(word) + pairs * (BITS - 1)


@triton.jit
def load_words(low_ptr, top_ptr, word, mask, BITS: tl.constexpr):
    """The words with the low bits, and those with the top bits (the same ones, unless ``BITS == 3``)."""
    low = tl.load(low_ptr + word, mask=mask, other=0)
    top = tl.load(top_ptr + word // 2, mask=mask, other=0) if BITS == 3 else low
    return low, top


@triton.jit
def fields_of_pairs(low, top, shift, BITS: tl.constexpr, PAIRS: tl.constexpr):
    """Low bits and top bits, int32 ``(..., PAIRS)``: a column's value at bit 0, its neighbour's at bit 16."""
    pair = tl.arange(0, PAIRS)
    index = (tl.expand_dims(low, -1) >> (pair * (BITS - 1))) & ((2 ** (BITS - 1) - 1) * LOW_HALVES)
    return index, (tl.expand_dims(top, -1) >> (tl.expand_dims(shift, -1) + pair)) & LOW_HALVES


@triton.jit
def fields(low, top, shift, BITS: tl.constexpr, PAIRS: tl.constexpr):
    """Low bits and top bits of every column, int32 ``(..., 2 * PAIRS)``."""
    column = tl.arange(0, 2 * PAIRS)
    half, pair = column % 2 * 16, column // 2
    index = (tl.expand_dims(low, -1) >> (half + pair * (BITS - 1))) & (2 ** (BITS - 1) - 1)
    return index, (tl.expand_dims(top, -1) >> (tl.expand_dims(shift, -1) + half + pair)) & 1


@triton.jit
def load_scale(scale_ptr, offset, mask, E8M0: tl.constexpr):
    """Stored scales as float32, exactly; 1 where masked. A byte is float32's exponent field, 0 the subnormal 2**-127."""
    if E8M0:
        byte = tl.load(scale_ptr + offset, mask=mask, other=127).to(tl.int32)
        return tl.where(byte > 0, byte << 23, 1 << 22).to(tl.float32, bitcast=True)
    return tl.load(scale_ptr + offset, mask=mask, other=1.0).to(tl.float32)
