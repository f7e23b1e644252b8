"""Trellis codes on the cpu kernels: the same bits as codes of the grid, which the oracle of test_cpu.py checks.

What the codes stand for is the state machine of tests/numerics/test_trellis.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potq import native
from potq.kernels import explain
from potq.kernels.cpu import backend
from potq.kernels.weight import PackedWeight
from potq.nn.packed import pack_module
from potq.numerics.grid import uniform
from potq.numerics.packing import pack, unpack
from potq.numerics.scheme import TRELLIS, QuantScheme
from potq.numerics.tensor import QuantizedWeight

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")

CPU = torch.device("cpu")
ISAS = {} if native.missing() else native.usable_isas()
NAMES = list(TRELLIS)


def _weight(scheme: QuantScheme, rows: int, columns: int) -> QuantizedWeight:
    """Any codes: every path is one."""
    generator = torch.Generator().manual_seed(rows + columns)
    codes = torch.randint(0, 2**scheme.code_bits, (rows, columns), dtype=torch.uint8, generator=generator)
    scale = torch.rand(scheme.scale_shape(rows, columns), generator=generator).half()
    return QuantizedWeight(pack(codes, scheme.code_bits), scale, (rows, columns), scheme)


def _on_the_grid(weight: QuantizedWeight) -> QuantizedWeight:
    scheme = QuantScheme(grid=weight.scheme.grid, group_size=weight.scheme.group_size)
    return QuantizedWeight(pack(weight.codes(), scheme.grid.bits), weight.scale, weight.shape, scheme)


def _product(weight: QuantizedWeight, isa: str, x: Tensor, bias: Tensor, activations: Any) -> Tensor:
    kernel = backend.Kernel(PackedWeight.of(weight))
    kernel._isa = ISAS[isa]
    return kernel(x, bias, activations)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("group", [16, 32, 48, 64, 128, "row"])
@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_grid(name: str, group: Any, activations: Any, isa: str) -> None:
    scheme = QuantScheme(name, group_size=group)
    for m, rows, columns in [(1, 48, 192), (3, 17, 130), (33, 5, 1091), (1, 1, 1), (2, 16, 17)]:
        generator = torch.Generator().manual_seed(m)
        weight, x = _weight(scheme, rows, columns), torch.randn(m, columns, generator=generator)
        bias = torch.randn(rows, generator=generator)
        expected = _product(_on_the_grid(weight), isa, x, bias, activations)
        assert torch.equal(_product(weight, isa, x, bias, activations), expected), (m, rows, columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [1, 63, 64, 65, 333])
@pytest.mark.parametrize("name", NAMES)
def test_rows_looked_up_are_the_dequantized_ones(name: str, columns: int, dtype: torch.dtype) -> None:
    weight = _weight(QuantScheme(name), 19, columns)
    ids = torch.tensor([[18, 0, 3], [3, 7, 1]])
    found = backend.embedding(ids, PackedWeight.of(weight), dtype)
    assert torch.equal(found, weight.dequantize().to(dtype)[ids])


@pytest.mark.parametrize("columns", [69, 71])
@pytest.mark.parametrize("name", NAMES)
def test_bits_behind_the_last_code_do_not_matter(name: str, columns: int) -> None:
    weight, x, bias = _weight(QuantScheme(name), 20, columns), torch.randn(2, columns), torch.zeros(20)
    generator = torch.Generator().manual_seed(5)
    longer = torch.randint(0, 2**weight.scheme.code_bits, (20, 72), dtype=torch.uint8, generator=generator)
    longer[:, :columns] = unpack(weight.packed, weight.scheme.code_bits, columns)
    filled = QuantizedWeight(pack(longer, weight.scheme.code_bits), weight.scale, weight.shape, weight.scheme)
    assert filled.packed.shape == weight.packed.shape
    assert not torch.equal(filled.packed, weight.packed)
    expected = _product(weight, native.isa(), x, bias, "int8")
    assert torch.equal(_product(filled, native.isa(), x, bias, "int8"), expected)


@pytest.mark.parametrize("name", NAMES)
def test_explain_names_the_cpu(name: str) -> None:
    weight = _weight(QuantScheme(name), 16, 128)
    assert explain(pack_module(nn.Linear(128, 16), weight)).backend == "cpu"
    assert explain(pack_module(nn.Embedding(16, 128), weight)).backend == "cpu"


def test_longer_codes_have_no_kernel() -> None:
    found = backend.supports(QuantScheme(grid=uniform(5, midrise=True), trellis=True), (4, 64), CPU, torch.float32)
    assert found == "kernels exist for a trellis of 2 and 3 bits"
