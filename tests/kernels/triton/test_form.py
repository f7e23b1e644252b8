"""Which decoding a grid gets."""

from __future__ import annotations

import pytest

from potq.kernels.triton.form import Form, form_of
from potq.numerics.grid import Grid, pot
from potq.numerics.scheme import PRESETS


@pytest.mark.parametrize(
    ("grid", "form"),
    [
        (pot(4), Form("powers", 1, 7, True)),
        (pot(3), Form("powers", 1, 3, True)),
        (pot(2), Form("powers", 1, 1, True)),
        (pot(3, zero=False), Form("powers", 1, 3)),
        (pot(2, zero=False, stride=2), Form("powers", 2, 2)),
        (PRESETS["int4"].grid, Form("integer")),
        (PRESETS["apot4"].grid, Form("table")),
        (PRESETS["nf4"].grid, Form("table")),
        (PRESETS["mxpot"].grid, Form("table")),  # repeated magnitudes
        (Grid(bits=3, magnitudes=(0, 1, 2, 8)), Form("table")),  # uneven powers
        (Grid(bits=3, magnitudes=(0, 0, 1, 2)), Form("table")),  # two zeros
    ],
)
def test_forms(grid: Grid, form: Form) -> None:
    assert form_of(grid) == form


@pytest.mark.parametrize("mantissa", [7, 10])
@pytest.mark.parametrize("grid", [pot(4), pot(3, stride=2), pot(3, zero=False), pot(2, zero=False, stride=2)])
def test_the_float_of_an_index_lifted_is_its_level(grid: Grid, mantissa: int) -> None:
    form, bias = form_of(grid), {7: 127, 10: 15}[mantissa]
    fields = [form.stride * index + form.base(mantissa) for index in range(len(grid.magnitudes))]
    floats = [2.0 ** (field - bias) * form.lift(mantissa) if field else 0.0 for field in fields]
    assert floats == [magnitude / grid.reference for magnitude in grid.magnitudes]
