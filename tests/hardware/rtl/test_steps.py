"""Levels as signed powers of two: the steps of a code sum to its level, and signals that say so are as plain as can be."""

from __future__ import annotations

import pytest

from potq.hardware.rtl.decode import Decoder
from potq.hardware.rtl.product import possible
from potq.hardware.rtl.steps import Step, one_step, two_steps, used_codes
from potq.numerics.grid import Grid
from potq.numerics.scheme import PRESETS

ONE = [name for name, scheme in PRESETS.items() if scheme.grid.is_power_of_two]
TWO = [name for name, scheme in PRESETS.items() if scheme.grid.terms == 2]


def value(step: Step) -> int:
    return 0 if step is None else (-1 if step[1] else 1) << step[0]


@pytest.mark.parametrize("preset", ONE)
def test_one_step_is_the_level(preset: str) -> None:
    grid = PRESETS[preset].grid
    shifts = one_step(grid)
    assert shifts is not None
    assert tuple(map(value, shifts.steps)) == grid.levels
    assert shifts.used == used_codes(grid)


@pytest.mark.parametrize("preset", TWO)
def test_two_steps_sum_to_the_level(preset: str) -> None:
    grid = PRESETS[preset].grid
    shifts = two_steps(grid)
    assert shifts is not None
    assert tuple(value(a) + value(b) for a, b in zip(shifts[0].steps, shifts[1].steps, strict=True)) == grid.levels


def test_levels_of_three_steps_take_a_multiplier() -> None:
    grid = Grid(bits=3, magnitudes=(0, 1, 2, 11))
    assert one_step(grid) is None
    assert two_steps(grid) is None
    assert possible(grid) == ("baugh-wooley", "booth", "multiply")


@pytest.mark.parametrize(
    ("values", "expression"),
    [
        ([0, 0, 1, 1], "code[1]"),
        ([1, 0, 1, 0], "~code[0]"),
        ([0, 1, 1, 1], "|code[1:0]"),
        ([None, 0, None, 1], "code[1]"),
        ([0, 1, 1, 0], "FLAG[code]"),
    ],
)
def test_a_flag_is_a_bit_of_the_code_where_one_says_it(values: list[int | None], expression: str) -> None:
    decoder = Decoder(2)
    assert decoder.flag("flag", values, "why") == "flag"
    assert decoder.lines[-1] == f"wire flag = {expression};  // why"


def test_a_constant_is_not_declared() -> None:
    decoder = Decoder(2)
    assert decoder.flag("flag", [1, None, 1, 1], "why") == "1'b1"
    assert decoder.lines == []
