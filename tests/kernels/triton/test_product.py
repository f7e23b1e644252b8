"""Fused products under Triton's interpreter, against float64 sums over the reference's weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install 'potq[gpu]'")

from potq.kernels.triton.product import linear
from potq.kernels.triton.weight import GpuWeight
from potq.kernels.weight import PackedWeight
from potq.numerics import functional
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.numerics.tensor import QuantizedWeight

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float16, torch.bfloat16]
GRIDS = ["pot2", "pot2z", "pot3", "pot3nz", "pot4", "int2", "int3", "int4", "apot4", "nf4", "mxpot", "int8"]
GRIDS += ["pot2t", "apot3t"]


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _weight(scheme: QuantScheme, rows: int, columns: int) -> QuantizedWeight:
    scale = functional.encode_scale(_rand(*scheme.scale_shape(rows, columns), seed=1).abs() + 0.5, scheme.scale_dtype)
    row_scale = _rand(rows, 1, seed=2).abs().half() if scheme.row_scale else None
    return QuantizedWeight.from_scale(_rand(rows, columns), scale, scheme, row_scale)


def _check(weight: QuantizedWeight, m: int, dtype: torch.dtype, bias: bool = False) -> None:
    rows, columns = weight.shape
    x, b = _rand(m, columns, seed=3).to(dtype), _rand(rows, seed=4).to(dtype) if bias else None
    dense, exact = weight.dequantize().double(), x.double()
    expected = exact @ dense.T + (0 if b is None else b.double())
    arranged = GpuWeight.of(PackedWeight(weight.packed.to(DEVICE), weight.scale.to(DEVICE), weight.scheme, weight.shape[1]))
    row_scale = None if weight.row_scale is None else weight.row_scale.to(DEVICE)
    found = linear(x.to(DEVICE), arranged, None if b is None else b.to(DEVICE), row_scale).cpu()
    assert found.dtype == dtype
    sums = exact.abs() @ dense.abs().T  # float32 additions err by 2**-24 of what they add, columns of them at most
    rounding = expected.abs() * torch.finfo(dtype).eps / 2
    assert ((found.double() - expected).abs() <= rounding + sums * columns * 2.0**-24).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 2, 17])
@pytest.mark.parametrize("name", GRIDS)
def test_grids(name: str, m: int, dtype: torch.dtype) -> None:
    _check(_weight(QuantScheme(name, group_size=32), 9, 96), m, dtype, bias=True)


@pytest.mark.parametrize("m", [1, 3])
def test_inputs_that_start_at_an_odd_place(m: int) -> None:
    weight = _weight(QuantScheme("pot3"), 5, 64)
    arranged = GpuWeight.of(PackedWeight(weight.packed.to(DEVICE), weight.scale.to(DEVICE), weight.scheme, weight.shape[1]))
    x = torch.cat([torch.zeros(1), _rand(m, 64).flatten()]).half().to(DEVICE)[1:].view(m, 64)
    assert torch.equal(linear(x, arranged, None), linear(x.clone(), arranged, None))


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("group", [16, 48, 64, 128, "row", "tensor"])
@pytest.mark.parametrize("name", ["pot2", "pot3", "pot4"])
def test_groups(name: str, group: int | str, m: int) -> None:
    _check(_weight(QuantScheme(name, group_size=group), 5, 168), m, torch.float16)  # 168: a shorter last group


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("row_scale", [False, True])
def test_e8m0_and_row_scales(row_scale: bool, m: int) -> None:
    scheme = QuantScheme("pot3", group_size=32, scale_dtype="e8m0", row_scale=row_scale)
    _check(_weight(scheme, 5, 96), m, torch.bfloat16, bias=True)


@pytest.mark.parametrize("name", ["pot2", "pot3", "pot4"])
@pytest.mark.parametrize(("m", "rows", "columns"), [(1, 3, 2056), (1, 70, 64), (70, 70, 64), (16, 5, 1056)])
def test_shapes_of_several_blocks_and_parts(name: str, m: int, rows: int, columns: int) -> None:
    _check(_weight(PRESETS[name], rows, columns), m, torch.float16)


def test_batches_and_no_rows() -> None:
    weight = _weight(PRESETS["pot4"], 5, 64)
    arranged = GpuWeight.of(PackedWeight(weight.packed.to(DEVICE), weight.scale.to(DEVICE), weight.scheme, weight.shape[1]))
    x = _rand(2, 3, 64).half().to(DEVICE)
    assert torch.equal(linear(x, arranged, None), linear(x.view(6, 64), arranged, None).view(2, 3, 5))
    assert linear(x[:, :0], arranged, None).shape == (2, 0, 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows_multiply_with_the_dequantized_weight(dtype: torch.dtype) -> None:
    weight, x, bias = _weight(PRESETS["pot4"], 5, 64), _rand(257, 64).to(DEVICE, dtype), _rand(5).to(DEVICE, dtype)
    arranged = GpuWeight.of(PackedWeight(weight.packed.to(DEVICE), weight.scale.to(DEVICE), weight.scheme, weight.shape[1]))
    expected = torch.nn.functional.linear(x, weight.dequantize().to(DEVICE, dtype), bias)
    assert torch.equal(linear(x, arranged, bias), expected)


def test_the_same_bits_every_time() -> None:
    weight = _weight(PRESETS["pot4"], 5, 2048)
    arranged = GpuWeight.of(PackedWeight(weight.packed.to(DEVICE), weight.scale.to(DEVICE), weight.scheme, weight.shape[1]))
    x = _rand(1, 2048).half().to(DEVICE)
    assert torch.equal(linear(x, arranged, None), linear(x, arranged, None))
