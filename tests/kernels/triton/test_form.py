"""Which decoding a grid gets."""

from __future__ import annotations

import pytest

from potq.grid import Grid, pot
from potq.kernels.triton.form import Form, form_of
from potq.scheme import PRESETS


@pytest.mark.parametrize(
    ("grid", "form"),
    [
        (pot(4), Form("exponent", 1, True, 6)),
        (pot(3), Form("exponent", 1, True, 2)),
        (pot(2), Form("exponent", 1, True, 0)),
        (pot(3, zero=False), Form("exponent", 1, False, 3)),
        (pot(2, zero=False, stride=2), Form("exponent", 2, False, 2)),
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
