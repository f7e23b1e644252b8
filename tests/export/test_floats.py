"""The smallest float type that holds values."""

from __future__ import annotations

import pytest
import torch

from potq.errors import ExportError
from potq.export.floats import exact_floats


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.0, torch.float16),
        (1 + 2.0**-10, torch.float16),
        (2.0**-24, torch.float16),  # its least subnormal number
        (2.0**-25, torch.bfloat16),
        (65536.0, torch.bfloat16),
        (1 + 2.0**-11, torch.float32),
        (65536.0 + 256, torch.float32),
    ],
)
def test_the_first_that_holds_them(value: float, dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, value])
    found = exact_floats(values, "weight")
    assert found.dtype == dtype
    assert torch.equal(found.float(), values)


def test_float64_that_float32_does_not_hold() -> None:
    assert exact_floats(torch.tensor([0.1], dtype=torch.float32).double(), "weight").dtype == torch.float32
    with pytest.raises(ExportError, match="head has values that float32 does not hold exactly"):
        exact_floats(torch.tensor([0.1], dtype=torch.float64), "head")
