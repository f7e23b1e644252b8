"""What every kernel begins with: the fields of octets (see :mod:`potq.kernels.triton.layout`), scales, and pairs of halves.

A pair is an int32 with a column's value in its lower half and its neighbour's in the upper one, for arithmetic on both at
once. Octets are given with a last axis of length 1, along which a thread keeps its four pairs: shifts are constants then.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOW_HALVES = tl.constexpr(0x00010001)  # the lowest bit of both halves


@triton.jit
def load_fields(low_ptr, top_ptr, row, octet, octets, mask, BITS: tl.constexpr):
    """Low bits and top bits of the columns of ``octet`` ``(..., 1)`` in ``row``, both pairs ``(..., 4)``; 0 where masked.

    ``octets`` is their number in a row, ``row`` an int64.
    """
    pair = tl.arange(0, 4)
    if BITS == 8:
        bytes = tl.load(low_ptr + row * octets * 4 + octet * 4 + pair, mask=mask, other=0).to(tl.int32)
        spread = (bytes & 0xFF) | ((bytes & 0xFF00) << 8)
        return spread & (127 * LOW_HALVES), (spread >> 7) & LOW_HALVES
    quads = tl.cdiv(octets, 4)
    in_word: tl.constexpr = 4 // BITS if BITS < 3 else 5 - BITS  # octets: 2, 2, 1
    low = tl.load(low_ptr + row * quads * (4 // in_word) + octet // in_word, mask=mask, other=0)
    low = low >> (octet % in_word * 8)
    if BITS == 3:
        top = tl.load(top_ptr + row * quads + octet // 4, mask=mask, other=0) >> (octet % 4 * 4)
    else:
        top = low >> (4 * (BITS - 1))
    index = (low >> (pair * (BITS - 1))) & ((2 ** (BITS - 1) - 1) * LOW_HALVES)
    return index, (top >> pair) & LOW_HALVES


@triton.jit
def load_scale(scale_ptr, offset, mask, E8M0: tl.constexpr):
    """Stored scales as float32, exactly; 1 where masked. A byte is float32's exponent field, 0 the subnormal 2**-127."""
    if E8M0:
        byte = tl.load(scale_ptr + offset, mask=mask, other=127).to(tl.int32)
        return tl.where(byte > 0, byte << 23, 1 << 22).to(tl.float32, bitcast=True)
    return tl.load(scale_ptr + offset, mask=mask, other=1.0).to(tl.float32)


@triton.jit
def halves(pair, DTYPE: tl.constexpr):
    """The even and the odd column of pairs of ``DTYPE``, float16 or bfloat16."""
    even = pair.to(tl.int16).to(DTYPE, bitcast=True)
    return even, (pair >> 16).to(tl.int16).to(DTYPE, bitcast=True)


@triton.jit
def paired(even, odd):
    """Pairs of 16-bit floats."""
    low = even.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (odd.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def twice(value):
    """Pairs of 16-bit floats with themselves."""
    return (value.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF) * LOW_HALVES


@triton.jit
def multiply_pairs(a, b, DTYPE: tl.constexpr, PACKED: tl.constexpr):
    """Products of pairs of ``DTYPE``, rounded once: one instruction if ``PACKED``, which Triton's interpreter cannot run."""
    if PACKED:
        if tl.float16 == DTYPE:
            return tl.inline_asm_elementwise("mul.f16x2 $0, $1, $2;", "=r,r,r", [a, b], tl.int32, is_pure=True, pack=1)
        else:  # bfloat16 has no multiplication before compute capability 9.0; adding -0 keeps the sign of a zero
            asm: tl.constexpr = "{.reg .b32 zeros; mov.b32 zeros, 0x80008000; fma.rn.bf16x2 $0, $1, $2, zeros;}"
            return tl.inline_asm_elementwise(asm, "=r,r,r", [a, b], tl.int32, is_pure=True, pack=1)
    even, odd = halves(a, DTYPE)
    other_even, other_odd = halves(b, DTYPE)
    even = even.to(tl.float32) * other_even.to(tl.float32)  # exact: rounded once, below
    return paired(even.to(DTYPE), (odd.to(tl.float32) * other_odd.to(tl.float32)).to(DTYPE))
