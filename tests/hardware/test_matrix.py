"""Products of integer matrices against a loop that holds every step to 32 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potq.errors import ModelError
from potq.hardware.fixed_point import LIMIT, Integers, scaled, to_int8
from potq.hardware.matrix import IntegerMatrix
from potq.numerics.scheme import PRESETS, TRELLIS, QuantScheme
from potq.ptq.algorithms.rtn import rtn

SCHEMES = [*PRESETS, *TRELLIS, "int8:group_size=row", "pot4:group_size=tensor", "apot4:scale_dtype=e8m0:row_scale=true"]
HELD = [name for name in SCHEMES if not name.startswith(("pot6", "pot7"))]


def by_hand(matrix: IntegerMatrix, inputs: list[int]) -> list[int]:
    """The product as C does it; every intermediate result is checked."""

    def held(value: int) -> int:
        assert -(2**31) <= value < 2**31
        return value

    columns = matrix.shape[1]
    blocks = []
    for start in range(0, columns, matrix.group):
        codes, shift = to_int8(np.array(inputs[start : start + matrix.group], np.int64))
        blocks.append((codes.tolist(), int(shift)))
    largest = max(shift for _, shift in blocks)
    results = []
    for row, levels in enumerate(matrix.values().tolist()):
        total = 0
        for group, (codes, shift) in enumerate(blocks):
            acc, start = 0, group * matrix.group
            for code, level in zip(codes, levels[start : start + matrix.group], strict=True):
                acc = held(acc + code * level)
            acc = held((acc >> matrix.dropped) * int(matrix.mantissas[row, group]))
            total = held(total + (acc >> min(int(matrix.shifts[row, group]) + largest - shift, 31)))
        results.append(int(scaled(np.array(total), matrix.exponent + largest)))
    return results


@pytest.mark.parametrize("name", HELD)
def test_products_are_those_of_32_bits(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(7, 160, generator=generator) * torch.rand(7, 1, generator=generator)
    stored = rtn(weight, QuantScheme(name))
    matrix = IntegerMatrix.from_weight("layer", stored)
    inputs = torch.randn(160, generator=generator).mul(50000).round().long().numpy()
    found = matrix.product(inputs)
    assert found.tolist() == by_hand(matrix, inputs.tolist())
    exact = stored.dequantize().double().numpy() @ inputs
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()
    rows = matrix.rows(np.array([6, 0])) / 65536
    assert np.abs(rows - stored.dequantize().numpy()[[6, 0]]).max() < 2**-15


@pytest.mark.parametrize("name", HELD)
def test_extremes_fit(name: str) -> None:
    """Every code the largest level, all inputs at the limit."""
    scheme = QuantScheme(name)
    largest = int(np.argmax(np.abs(scheme.grid.levels)))
    stored = rtn(torch.randn(3, 576, generator=torch.Generator().manual_seed(2)), scheme)
    full = IntegerMatrix.from_weight("layer", stored)
    codes = np.full_like(full.codes, largest)
    fields = {key: getattr(full, key) for key in full.__dataclass_fields__}
    matrix = IntegerMatrix(**{**fields, "codes": codes})
    for sign in (1, -1):
        inputs: Integers = np.full(576, sign * LIMIT, np.int64)
        assert matrix.product(inputs).tolist() == by_hand(matrix, inputs.tolist())


def test_power_of_two_scales_have_one_mantissa() -> None:
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(3))
    shifted = IntegerMatrix.from_weight("layer", rtn(weight, QuantScheme("mxpot")))
    assert shifted.is_shift
    assert len(np.unique(shifted.mantissas)) == 1
    assert int(shifted.mantissas[0, 0]).bit_count() == 1
    assert not IntegerMatrix.from_weight("layer", rtn(weight, QuantScheme("pot4"))).is_shift


def test_a_zero_scale_is_a_zero_row() -> None:
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(3))
    weight[1] = 0
    matrix = IntegerMatrix.from_weight("layer", rtn(weight, QuantScheme("pot4")))
    inputs = torch.randn(128, generator=torch.Generator().manual_seed(4)).mul(50000).round().long().numpy()
    assert abs(matrix.product(inputs)[1]) <= 1
    assert not matrix.rows(np.array([1])).any()


def test_sums_that_do_not_fit_are_refused() -> None:
    weight = torch.randn(2, 64)
    with pytest.raises(ModelError, match=r"h\.0: a sum over groups of 64 inputs under pot6"):
        IntegerMatrix.from_weight("h.0", rtn(weight, QuantScheme("pot6")))
