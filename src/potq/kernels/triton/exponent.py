"""Weights of a power-of-two grid, by integer arithmetic on the exponent field (PoTPTQ, arXiv 2507.11959).

A weight is ``+-s * 2**k`` with ``k = stride * (index - last) <= 0``. As bit patterns of float16 or bfloat16 (exponent field
from bit ``MANTISSA`` on)::

    s:          0 eeeee mmmmmmmmmm        the group's scale, rounded to the type
    index:      +  iii 0000000000         times the stride, shifted into place
              - last << MANTISSA          once a scale, not once a weight
    sign:     | S 00000 0000000000

Two weights share a 32-bit addition: a half that stays within 0..0x7fff never carries into the other. That is so, and the sum
is the correctly rounded product, if every exponent of the group's weights is that of a normal number. Index 0 of a grid with
zero must give zero: bit ``b-1`` of ``index + 2**(b-1) - 1`` says whether the index is nonzero, and multiplies the scale.

Scales whose weights leave the normal range (0, infinite, NaN, subnormal, and those a few octaves above) go by a float32
product, rounded once. A block of weights looks once whether it has any: in the common case that is all it costs.

Rejected: clamping each exponent, two instructions a weight, and wrong among subnormals, where bits must be rounded away.
"""

from __future__ import annotations

import triton
import triton.language as tl

from potq.kernels.triton.codes import LOW_HALVES
from potq.kernels.triton.levels import float_levels


@triton.jit
def scale_bits(scale, DTYPE: tl.constexpr):
    """Float32 scales rounded to ``DTYPE``: its 16 bits, as a non-negative int32."""
    return scale.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def is_regular(bits, REACH: tl.constexpr, MANTISSA: tl.constexpr):
    """Whether a scale's weights, down to ``2**-REACH`` times it, are normal numbers; ``bits`` from :func:`scale_bits`."""
    return (bits >= (REACH + 1) << MANTISSA) & (bits < 0x7FFF >> MANTISSA << MANTISSA)


@triton.jit
def add_exponents(
    index, sign, bits, BITS: tl.constexpr, STRIDE: tl.constexpr, HAS_ZERO: tl.constexpr, MANTISSA: tl.constexpr
):
    """Pairs of weights, int32, from fields of pairs and regular scales' bits of a shape that broadcasts with them."""
    least = bits - (STRIDE * (2 ** (BITS - 1) - 1) << MANTISSA)  # what index 0 would be worth
    if HAS_ZERO:
        nonzero = ((index + (2 ** (BITS - 1) - 1) * LOW_HALVES) >> (BITS - 1)) & LOW_HALVES
        magnitude = index * (STRIDE << MANTISSA) + nonzero * least
    else:
        magnitude = index * (STRIDE << MANTISSA) + least * LOW_HALVES
    return magnitude | (sign << 15)


@triton.jit
def multiply(index, sign, scale, BITS: tl.constexpr, STRIDE: tl.constexpr, HAS_ZERO: tl.constexpr, DTYPE: tl.constexpr):
    """The same pairs for any float32 scale."""
    even = _product(index & 0xFFFF, sign & 1, scale, BITS, STRIDE, HAS_ZERO, DTYPE)
    odd = _product(index >> 16, sign >> 16, scale, BITS, STRIDE, HAS_ZERO, DTYPE)
    return even | (odd << 16)


@triton.jit
def _product(index, sign, scale, BITS: tl.constexpr, STRIDE: tl.constexpr, HAS_ZERO: tl.constexpr, DTYPE: tl.constexpr):
    level = float_levels(index, sign, None, "exponent", BITS, STRIDE, HAS_ZERO)
    return scale_bits(level * scale, DTYPE)
