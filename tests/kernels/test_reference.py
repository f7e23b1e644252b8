"""The reference kernel gives the one right dequantization, bit for bit, whatever the grid and the shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from potq.kernels import reference
from potq.kernels.weight import PackedWeight
from potq.numerics.functional import decode_scale, level_table
from potq.numerics.scale_search import choose_scale
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.numerics.tensor import QuantizedWeight

CPU = torch.device("cpu")


def _both(quantized: QuantizedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    scheme, columns = quantized.scheme, quantized.shape[1]
    levels = level_table(scheme.grid, CPU)
    kernel = reference.dequantize(quantized.packed, decode_scale(quantized.scale), levels, columns, scheme.group(columns))
    return kernel, quantized.dequantize()


@pytest.mark.parametrize("group_size", [1, 16, 64, 1000, "row", "tensor"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 64), (7, 71), (2, 128)])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_equals_the_quantized_weights_own_dequantize_bitwise(name: str, shape: tuple[int, int], group_size: Any) -> None:
    scheme = QuantScheme(name, group_size=group_size)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    kernel, expected = _both(QuantizedWeight.from_scale(weight, choose_scale(weight, scheme, "absmax"), scheme))
    assert kernel.dtype == torch.float32
    assert kernel.shape == shape
    assert torch.equal(kernel.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_byte_value_decodes(name: str) -> None:
    """Random bytes, hence also the codes that quantize never writes."""
    scheme = QuantScheme(name, group_size=16)
    empty = QuantizedWeight.empty((8, 160), scheme, "cpu")
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, empty.packed.shape, generator=generator).to(torch.uint8)
    scale = torch.randint(100, 140, empty.scale.shape, generator=generator).to(empty.scale.dtype)
    kernel, expected = _both(QuantizedWeight(packed, scale, (8, 160), scheme))
    assert torch.equal(kernel.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("group_size", [1, 16, 1000, "row"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_row_scales_multiply_the_rows_bitwise(name: str, group_size: Any) -> None:
    scheme = QuantScheme(name, group_size=group_size, scale_dtype="e8m0", signed_scale=False, row_scale=True)
    generator = torch.Generator().manual_seed(0)
    empty = QuantizedWeight.empty((7, 71), scheme, "cpu")
    packed = torch.randint(0, 256, empty.packed.shape, generator=generator).to(torch.uint8)
    scale = torch.randint(100, 140, empty.scale.shape, generator=generator).to(torch.uint8)
    row_scale = torch.randint(0, 0x7C00, (7, 1), generator=generator).to(torch.int16).view(torch.float16)
    expected = QuantizedWeight(packed, scale, (7, 71), scheme, row_scale).dequantize()
    weight = PackedWeight(packed, scale, scheme, 71, row_scale)
    found = reference.matrix(weight, torch.float32)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    ids = torch.tensor([[6, 0], [2, 2]])
    assert torch.equal(reference.embedding(ids, weight, torch.float32), expected[ids])
    x, bias = torch.randn(3, 71, generator=generator), torch.randn(7, generator=generator)
    found = reference.linear(x, weight, bias, "int8")
    assert torch.equal(found, torch.nn.functional.linear(x, expected, bias))


def test_zero_scales_give_zeros() -> None:
    scheme = QuantScheme("pot2", group_size=4)
    empty = QuantizedWeight.empty((2, 6), scheme, "cpu")
    kernel, _ = _both(QuantizedWeight(torch.full_like(empty.packed, 27), torch.zeros_like(empty.scale), (2, 6), scheme))
    assert torch.equal(kernel, torch.zeros(2, 6))


def test_one_row_of_scales_is_shared_by_all_rows() -> None:
    packed = torch.tensor([[0x21], [0x43]], dtype=torch.uint8)
    levels = torch.arange(16.0)
    result = reference.dequantize(packed, torch.tensor([[10.0, 100.0]]), levels, columns=2, group=1)
    assert result.tolist() == [[10.0, 200.0], [30.0, 400.0]]
