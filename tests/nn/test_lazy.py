"""Tensors that are made when something computes with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potq.config import PoTConfig
from potq.errors import ModelError
from potq.kernels import reference
from potq.kernels.weight import PackedWeight
from potq.nn.lazy import LazyTensor
from potq.nn.packed import pack_module
from potq.numerics import fake_quantize as straight_through
from potq.numerics.scheme import QuantScheme
from potq.ptq.algorithms.rtn import rtn
from potq.qat import QATSettings
from potq.qat.preparation import prepare


class Counted:
    """Makes ``2 x``, and counts how often."""

    def __init__(self) -> None:
        self.x, self.times = torch.randn(3, 4, requires_grad=True), 0

    def __call__(self) -> Tensor:
        self.times += 1
        return 2 * self.x

    def lazy(self) -> LazyTensor:
        return LazyTensor(tuple(self.x.shape), self.x.dtype, self.x.device, self)


def test_what_is_known_makes_nothing() -> None:
    counted = Counted()
    lazy = counted.lazy()
    assert (lazy.dtype, lazy.device, lazy.shape, lazy.ndim) == (torch.float32, torch.device("cpu"), (3, 4), 2)
    assert (lazy.size(1), lazy.dim(), lazy.numel(), lazy.is_floating_point(), lazy.is_meta) == (4, 2, 12, True, False)
    assert counted.times == 0


def test_it_computes_as_the_tensor_that_it_makes() -> None:
    counted = Counted()
    lazy, expected, ids = counted.lazy(), 2 * counted.x, torch.tensor([2, 0])
    assert torch.equal(lazy, expected)
    assert torch.equal(lazy @ torch.ones(4), expected @ torch.ones(4))
    assert torch.equal(lazy[1], expected[1])
    assert torch.equal(nn.functional.embedding(ids, lazy), expected[ids])
    assert torch.equal(torch.cat([lazy, lazy]), torch.cat([expected, expected]))
    assert torch.equal(torch.zeros(3, 4).copy_(lazy), expected)
    assert type(lazy.to(torch.float64)) is Tensor
    assert repr(lazy) == repr(expected)
    assert counted.times > 0


def test_writing_is_refused() -> None:
    lazy = Counted().lazy()
    with pytest.raises(ModelError, match="read-only"):
        lazy.data = torch.zeros(3, 4)
    with pytest.raises(ModelError, match="read-only"):
        lazy.data += 1


def test_gradients_pass() -> None:
    counted = Counted()
    (counted.lazy() * 3).sum().backward()
    assert counted.x.grad is not None
    assert torch.equal(counted.x.grad, torch.full((3, 4), 6.0))


class Scaled(nn.Embedding):
    """Gemma's: asks its weight for the dtype, at every look-up."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * torch.tensor(8.0).to(self.weight.dtype)


def test_a_look_up_makes_no_table_of_a_packed_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = Scaled(50, 32)
    packed = pack_module(embedding, rtn(embedding.weight, QuantScheme("int8"), method="mse"))
    expected = packed.quantized.dequantize()[[3, 7]] * 8.0

    def matrix(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
        assert len(weight.packed) < 50, "the whole table"
        return found(weight, dtype)

    found = reference.matrix
    monkeypatch.setattr(reference, "matrix", matrix)
    assert torch.equal(packed(torch.tensor([3, 7])), expected)


def test_nor_of_one_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = nn.Sequential(Scaled(50, 32))
    model.config = type("Config", (), {})()
    prepare(model, PoTConfig("pot4", group_size=32, embedding=QuantScheme("int8")), QATSettings())
    sizes: list[int] = []

    def spy(weight: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(weight))
        return found(weight, *rest)

    found = straight_through.fake_quantize
    monkeypatch.setattr("potq.qat.nn.fake_quantize", spy)
    model(torch.tensor([3, 7]))
    assert sizes == [2]
