"""Widths: every sum of a group fits, and one bit less would not do."""

from __future__ import annotations

import pytest

from potq.hardware.rtl.design import design_of
from potq.hardware.rtl.widths import accumulator_bits, activation_range, product_range, signed_bits
from potq.numerics.scheme import PRESETS, QuantScheme


@pytest.mark.parametrize(("low", "high", "bits"), [(0, 0, 1), (-1, 0, 1), (-128, 127, 8), (-129, 0, 9), (0, 128, 9)])
def test_two_s_complement(low: int, high: int, bits: int) -> None:
    assert signed_bits(low, high) == bits


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("products", [1, 3, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_an_accumulator_holds_the_extremes_and_is_no_wider(preset: str, products: int, bits: int) -> None:
    grid = PRESETS[preset].grid
    found = accumulator_bits(grid, products, bits)
    ends = [level * x for level in grid.levels for x in activation_range(bits)]
    low, high = products * min(ends), products * max(ends)
    assert -(1 << (found - 1)) <= low
    assert high < 1 << (found - 1)
    assert not (-(1 << (found - 2)) <= low and high < 1 << (found - 2))


@pytest.mark.parametrize("preset", ["pot3s", "mxpot", "int4", "pot4"])
def test_a_total_holds_every_group_at_its_extreme(preset: str) -> None:
    design = design_of(QuantScheme(preset, group_size=32))
    mantissa = 2047 if design.scale_dtype == "float16" else 1024
    most = max(map(abs, product_range(design.grid, 8))) * 32 * mantissa * design.groups
    assert 1 << (design.total_bits - 2) < most + 1 <= 1 << (design.total_bits - 1)
