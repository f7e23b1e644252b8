"""Arithmetic that C and Python do alike, to the bit: integers of 32 bits, shifts that round, sums that saturate.

A *fixed-point* number here has 16 bits behind the binary point. Arrays are int64, so that numpy never overflows where
C would have to take care; every function states what 32 bits hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

FRACTION = 16
"""Bits behind the binary point."""
LIMIT = 2**31 - 1
"""The largest number; the least is its negative, so that every number has an absolute value."""


def fixed(values: NDArray[Any], fraction: int = FRACTION) -> Integers:
    """Real numbers, rounded to ``fraction`` bits behind the point, saturated."""
    return saturate(np.rint(np.clip(np.asarray(values, np.float64) * 2.0**fraction, -LIMIT, LIMIT)).astype(np.int64))


def saturate(values: Integers) -> Integers:
    """``values`` within 32 bits."""
    return np.clip(values, -LIMIT, LIMIT)


def bit_length(values: Integers) -> Integers:
    """Of numbers from 0 to ``2**53``: the least ``n`` with ``value < 2**n``."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def scaled(values: Integers, exponent: Integers | int) -> Integers:
    """``values * 2**exponent``, rounded to the nearest (halves up), saturated."""
    exponent = np.asarray(exponent, np.int64)
    left, right = np.clip(exponent, 0, 31), np.clip(-exponent, 0, 40)
    half = np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), 0)
    return saturate(((values << left) + half) >> right)


def mantissa_of(value: float, bits: int) -> tuple[int, int]:
    """A positive ``value`` as ``(m, e)``, about ``m * 2**e``, with ``m`` of exactly so many bits."""
    fraction, exponent = np.frexp(value)
    mantissa, exponent = round(float(fraction) * 2**bits), int(exponent) - bits
    return (mantissa // 2, exponent + 1) if mantissa == 2**bits else (mantissa, exponent)


def to_int8(values: Integers) -> tuple[Integers, Integers]:
    """The last axis as one block ``codes * 2**shift``: codes within +-127, shifts of the other axes.

    The shift is the least that does, 0 at least.
    """
    largest = np.abs(values).max(-1)
    shift = np.maximum(bit_length(largest) - 7, 0)
    shift += scaled(largest, -shift) > 127
    return scaled(values, -shift[..., None]), shift


def to_int15(values: Integers) -> tuple[Integers, Integers]:
    """The last axis as one block ``codes * 2**shift``: codes within +-2**14, shifts of the other axes."""
    shift = np.maximum(bit_length(np.abs(values).max(-1)) - 14, 0)
    return scaled(values, -shift[..., None]), shift


def root(values: Integers) -> Integers:
    """The integer square root of numbers below ``2**32``."""
    return np.sqrt(values.astype(np.float64)).astype(np.int64)


def quotient(dividend: Integers, divisor: Integers) -> Integers:
    """As C divides: towards zero."""
    return np.sign(dividend) * (np.abs(dividend) // divisor)
