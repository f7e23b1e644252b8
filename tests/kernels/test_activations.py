"""The kernels' rounded activations as training sees them, against the kernels: an identity matrix shows what they round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from potq import native
from potq.kernels.activations import in_units, is_fine, round_activations
from potq.nn.packed import PoTLinear, pack_module
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight

GROUPS: list[Any] = [16, 32, 48, 64, 80, 112, 128, "row"]


def identity(columns: int, group: Any) -> PoTLinear:
    """A packed identity matrix, exact."""
    scheme = QuantScheme("int8", group_size=group)
    scale = torch.full(scheme.scale_shape(columns, columns), 2.0, dtype=torch.float16)
    weight = QuantizedWeight.from_scale(torch.eye(columns), scale, scheme)
    assert torch.equal(weight.dequantize(), torch.eye(columns))
    module = pack_module(torch.nn.Linear(columns, columns, bias=False), weight)
    assert isinstance(module, PoTLinear)
    return module


def inputs(columns: int, outliers: bool, rows: int = 9) -> Tensor:
    """Normal values, of a size of their own in every row; every 64th is 30 times as large."""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(rows, columns, generator=generator)
    if outliers:
        x[:, 5::64] = 30
    return x * 10.0 ** torch.randint(-4, 4, (rows, 1), generator=generator)


@pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("columns", [64, 192, 100, 231])
@pytest.mark.parametrize("group", GROUPS)
def test_they_are_what_the_kernels_see(group: Any, columns: int, outliers: bool) -> None:
    x = inputs(columns, outliers)
    with torch.no_grad():
        seen = identity(columns, group)(x)
    scheme = QuantScheme("int8", group_size=group)
    found = round_activations(x, scheme.group(columns))
    torch.testing.assert_close(found, seen, rtol=3e-7, atol=0)  # the last bit of a step
    assert not torch.equal(found, x)


def test_blocks_with_an_outlier_take_16_bits() -> None:
    """One of 16 inputs is never so much larger than all of them together."""
    x = inputs(640, True)
    assert not is_fine(in_units(inputs(640, False), 64)[0]).any()
    assert is_fine(in_units(x, 64)[0]).all()
    assert not is_fine(in_units(x, 80)[0]).any()
    fine, coarse = ((round_activations(x, group) - x).abs().amax(1) / x.abs().amax(1) for group in (64, 80))
    assert fine.max() < 0.51 / 127 / 254
    assert coarse.min() > 0.4 / 127


def test_the_gradient_passes_unchanged() -> None:
    x = inputs(100, True).requires_grad_()
    upstream = torch.randn(9, 100)
    round_activations(x, 32).backward(upstream)
    assert x.grad is not None
    assert torch.equal(x.grad, upstream)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_are_rounded_in_float32(dtype: torch.dtype) -> None:
    x = inputs(64, False).clamp(-1e3, 1e3).to(dtype)
    assert torch.equal(round_activations(x, 64), round_activations(x.float(), 64).to(dtype))


@pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_spoils_its_block(value: float) -> None:
    x = inputs(128, False, rows=1)
    x[0, 3] = value
    with torch.no_grad():
        seen = identity(128, 64)(x)
    found = round_activations(x, 64)
    assert seen.isnan().all()  # a product is a sum over all blocks
    assert found[0, :64].isnan().all()
    assert found[0, 64:].isfinite().all()


def test_next_to_nothing_is_nothing() -> None:
    x = torch.full((1, 64), 2.0**-121)
    x[0, 0] = -(2.0**-121)
    assert not round_activations(x, 64).any()
    assert not round_activations(torch.zeros(2, 3, 64), 64).any()
