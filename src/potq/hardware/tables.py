"""Functions as small tables: powers of two, activation functions, rotations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potq.errors import ModelError
from potq.hardware.fixed_point import FRACTION, Integers, saturate

POWER_BITS = 8
"""Of a binary logarithm, the bits behind the point."""
ONE = 1 << 15
"""1 in a table."""
_STEP = 12  # bits of a fixed-point number between two entries of a gate: a step is 1/16
_ENTRIES = 256  # of a gate, up to 16; one more ends the last step
ROTATION_BITS = 14

POWERS: Integers = np.rint(ONE * np.exp2(-np.arange(1 << POWER_BITS) / (1 << POWER_BITS))).astype(np.int64)
"""``2**(-i / 256)`` for the fractions of a logarithm, in units of ``2**-15``."""


def power_of_two(negated: Integers) -> Integers:
    """``2**-x`` in units of ``2**-15``, where ``x`` has 8 bits behind the point and is not negative."""
    power: Integers = POWERS[negated & ((1 << POWER_BITS) - 1)] >> np.minimum(negated >> POWER_BITS, 31)
    return power


def gate_table(name: str) -> Integers:
    """``f(x) / x`` of the activation function ``name`` at ``x = i / 16``, in units of ``2**-15``, int64 ``(257,)``.

    All of these functions are ``x * t(x)`` with ``t(-x) = 1 - t(x)``, so the table needs positive numbers alone.

    Raises:
        ModelError: an activation function that is none of them.
    """
    if name not in _GATES:
        raise ModelError(f"no table is known for the activation function {name!r}, only for {', '.join(_GATES)}")
    return np.array([round(ONE * _GATES[name](index / 16)) for index in range(_ENTRIES + 1)], np.int64)


def activate(values: Integers, table: Integers) -> Integers:
    """The activation function of fixed-point ``values``, between two entries of ``table`` a straight line."""
    size = np.abs(values)
    index = np.minimum(size >> _STEP, _ENTRIES - 1)
    part = np.minimum(size - (index << _STEP), 1 << _STEP)
    gate = table[index] + (((table[index + 1] - table[index]) * part) >> _STEP)
    return saturate((values * np.where(values < 0, ONE - gate, gate)) >> 15)


def multiply(left: Integers, right: Integers) -> Integers:
    """The product of fixed-point numbers."""
    return saturate((left * right) >> FRACTION)


def rotation_table(cosine: NDArray[Any], sine: NDArray[Any]) -> tuple[Integers, Integers]:
    """Cosines and sines ``(positions, head_dim / 2)`` in units of ``2**-14``."""
    unit = 1 << ROTATION_BITS
    return np.rint(cosine * unit).astype(np.int64), np.rint(sine * unit).astype(np.int64)


def rotate(values: Integers, cosine: Integers, sine: Integers) -> Integers:
    """The first half of the last axis turned against the second."""
    first, second = np.split(values, 2, axis=-1)
    turned = np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return (turned + (1 << (ROTATION_BITS - 1))) >> ROTATION_BITS


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _gelu_tanh(x: float) -> float:
    return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


_GATES: dict[str, Callable[[float], float]] = {
    "silu": _logistic,
    "swish": _logistic,
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: 1.0,
}
