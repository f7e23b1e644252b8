"""Integer arithmetic against exact arithmetic, at the ends of the range too."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potq.errors import ModelError
from potq.hardware.fixed_point import LIMIT, bit_length, mantissa_of, quotient, root, scaled, to_int8, to_int15
from potq.hardware.tables import ONE, POWERS, activate, gate_table, power_of_two, rotate, rotation_table

NUMBERS = st.integers(-LIMIT, LIMIT)


def one(value: int) -> np.ndarray:
    return np.array([value], np.int64)


@given(NUMBERS, st.integers(-70, 70))
def test_scaling_rounds_halves_up_and_saturates(value: int, exponent: int) -> None:
    exact = math.floor(Fraction(value) * Fraction(2) ** exponent + Fraction(1, 2))
    assert scaled(one(value), exponent)[0] == max(-LIMIT, min(LIMIT, exact))


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_blocks_take_the_least_shift_that_fits(values: list[int]) -> None:
    for block, limit in ((to_int8, 127), (to_int15, 1 << 14)):
        codes, shift = block(np.array(values, np.int64))
        assert np.abs(codes).max() <= limit
        np.testing.assert_array_equal(codes, scaled(np.array(values, np.int64), -shift))
        if block is to_int8 and shift:
            assert np.abs(scaled(np.array(values, np.int64), -(shift - 1))).max() > limit


@given(st.integers(0, 2**32 - 1), NUMBERS, st.integers(1, LIMIT))
def test_roots_lengths_and_quotients(value: int, dividend: int, divisor: int) -> None:
    assert root(one(value))[0] == math.isqrt(value)
    assert bit_length(one(value))[0] == value.bit_length()
    assert quotient(one(dividend), one(divisor))[0] == math.trunc(Fraction(dividend, divisor))


@given(st.floats(1e-30, 1e30))
def test_mantissas_have_their_bits(value: float) -> None:
    mantissa, exponent = mantissa_of(value, 15)
    assert 2**14 <= mantissa < 2**15
    assert mantissa * 2.0**exponent == pytest.approx(value, rel=2**-15)


def test_powers_halve_with_every_step_of_the_logarithm() -> None:
    assert POWERS[0] == ONE
    logarithms = np.arange(0, 5000, dtype=np.int64)
    exact = ONE * np.exp2(-logarithms / 256)
    assert np.abs(power_of_two(logarithms) - exact).max() <= 1
    assert power_of_two(one(2**32))[0] == 0


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "relu"])
def test_activation_functions_are_near_the_real_ones(name: str) -> None:
    real = {
        "silu": lambda x: x / (1 + np.exp(-x)),
        "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda x: np.maximum(x, 0),
    }[name]
    values = np.linspace(-40, 40, 4001)
    found = activate(np.rint(values * 65536).astype(np.int64), gate_table(name)) / 65536
    assert np.abs(found - real(values)).max() < 1.5e-3
    assert activate(one(LIMIT), gate_table(name))[0] == LIMIT
    assert activate(one(-LIMIT), gate_table(name))[0] == 0


def test_an_unknown_activation_function_is_named() -> None:
    with pytest.raises(ModelError, match="'softsign'"):
        gate_table("softsign")


def test_rotations_keep_lengths() -> None:
    angles = np.arange(0, 50, 0.7).reshape(-1, 1)
    table = rotation_table(np.cos(angles), np.sin(angles))
    vectors = np.tile(np.array([[9000, -12000]], np.int64), (len(angles), 1))
    turned = rotate(vectors, *table)
    assert np.abs(np.hypot(*turned.T) - 15000).max() < 2
