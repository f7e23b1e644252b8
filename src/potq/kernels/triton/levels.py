"""Levels in registers: ``level / reference`` of every column, from low bits and top bits (int32, any shape).

A power of two is its exponent field, ``stride * index + constant``, and a sign bit: no conversion and no multiplication.
Integers are converted; other grids look their levels up. All are exact in float32, and in float16 and bfloat16 where they
fit int8.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def float_levels(
    index, sign, table_ptr,
    KIND: tl.constexpr, BITS: tl.constexpr, STRIDE: tl.constexpr, HAS_ZERO: tl.constexpr,
):  # fmt: skip
    """Float32 levels. ``KIND``, ``STRIDE`` and ``HAS_ZERO`` are those of a :class:`~potq.kernels.triton.form.Form`."""
    if KIND == "exponent":
        bits = _exponent_field(index, BITS, STRIDE, HAS_ZERO, 127, 23)
        return (bits | (sign << 31)).to(tl.float32, bitcast=True)
    elif KIND == "integer":
        return (index - (sign << (BITS - 1))).to(tl.float32) * (1 / 2 ** (BITS - 1))
    else:
        return tl.load(table_ptr + (index | (sign << (BITS - 1))))


@triton.jit
def half_levels(
    index, sign, table_ptr,
    KIND: tl.constexpr, BITS: tl.constexpr, STRIDE: tl.constexpr, HAS_ZERO: tl.constexpr,
    DTYPE: tl.constexpr, MANTISSA: tl.constexpr,
):  # fmt: skip
    """Levels in ``DTYPE``, float16 or bfloat16, with ``MANTISSA`` bits below its exponent field."""
    if KIND == "exponent":
        bias: tl.constexpr = 2 ** (14 - MANTISSA) - 1  # float16: 15, bfloat16: 127
        bits = _exponent_field(index, BITS, STRIDE, HAS_ZERO, bias, MANTISSA)
        return (bits | (sign << 15)).to(tl.int16).to(DTYPE, bitcast=True)
    else:
        return float_levels(index, sign, table_ptr, KIND, BITS, STRIDE, HAS_ZERO).to(DTYPE)


@triton.jit
def _exponent_field(
    index, BITS: tl.constexpr, STRIDE: tl.constexpr, HAS_ZERO: tl.constexpr, BIAS: tl.constexpr, MANTISSA: tl.constexpr
):
    """Bits of ``2**(stride * (index - last))``, or of zero."""
    bits = (index * STRIDE + (BIAS - STRIDE * (2 ** (BITS - 1) - 1))) << MANTISSA
    if HAS_ZERO:
        bits = tl.where(index == 0, 0, bits)
    return bits
