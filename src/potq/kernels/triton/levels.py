"""Levels in registers: ``level / reference`` of every column, from pairs of low bits and top bits.

A power-of-two level needs no conversion. Its index is put where a float has its exponent, its top bit where a float has its
sign, and nothing into the mantissa (the "float without mantissa")::

    S 00iii 0000000000      float16: +-2**(i - 15), and index 0 is a zero, as it should be
      |     |
      |     bit MANTISSA
      bit 15

which is the level over a constant, ``lift``: a multiplication by the scale that is due anyway takes it along. A grid without
zero gets a base added to the exponent, which makes the constant 1. Integers are converted; other grids look their levels up.
All of it is exact in float32, and in float16 and bfloat16 where levels fit int8.

Rejected: adding ``i`` to the exponent of the scale (PoTPTQ, arXiv 2507.11959), one integer addition for the multiplication:
zeros, and weights that are subnormal, then need instructions of their own, twice as many in all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from potq.kernels.triton.codes import LOW_HALVES, halves


@triton.jit
def power_pairs(index, top, STRIDE: tl.constexpr, BASE: tl.constexpr, MANTISSA: tl.constexpr):
    """Pairs of levels over ``lift`` (see :class:`~potq.kernels.triton.form.Powers`), as floats of ``MANTISSA`` bits."""
    return ((index * STRIDE + BASE * LOW_HALVES) << MANTISSA) | (top << 15)


@triton.jit
def float_levels(index, top, table_ptr, KIND: tl.constexpr, BITS: tl.constexpr, STRIDE: tl.constexpr, BASE: tl.constexpr):
    """Float32 levels of even and of odd columns; powers of two over ``lift``, which ``BASE`` is for, in float16."""
    if KIND == "powers":
        even, odd = halves(power_pairs(index, top, STRIDE, BASE, 10), tl.float16)
        return even.to(tl.float32), odd.to(tl.float32)
    else:
        even = _level(index & 0xFFFF, top & 1, table_ptr, KIND, BITS)
        return even, _level(index >> 16, top >> 16, table_ptr, KIND, BITS)


@triton.jit
def _level(index, top, table_ptr, KIND: tl.constexpr, BITS: tl.constexpr):
    if KIND == "integer":
        return (index - (top << (BITS - 1))).to(tl.float32) * (1 / 2 ** (BITS - 1))
    else:
        return tl.load(table_ptr + (index | (top << (BITS - 1))))
