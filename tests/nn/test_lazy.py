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
        return LazyTensor(tuple(self.x.shape), self.x.dtype, self.x.device, self, "the weight")


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


def _set(attribute: str, value: Any) -> Any:
    return lambda weight: setattr(weight, attribute, value)


WRITES = {
    "data": _set("data", torch.zeros(3, 4)),
    "data +=": lambda weight: weight.data.add_(1),
    "copy_": lambda weight: weight.copy_(torch.zeros(3, 4)),
    "init": nn.init.zeros_,
    "item": lambda weight: weight.__setitem__(0, 0.0),
    "row": lambda weight: weight[0].zero_(),
    "view": lambda weight: weight.view(-1)[2:].zero_(),
    "transposed": lambda weight: weight.T.fill_(1),
    "detached": lambda weight: weight.detach().normal_(),
    "out": lambda weight: torch.add(torch.zeros(3, 4), 1, out=weight),
    "foreach": lambda weight: torch._foreach_add_([weight], 1.0),
    "in place": lambda weight: nn.functional.relu(weight, inplace=True),
}
WISHES = {
    "requires_grad_": lambda weight: weight.requires_grad_(),
    "requires_grad": _set("requires_grad", True),
    "grad": _set("grad", torch.zeros(3, 4)),
    "optimizer": lambda weight: torch.optim.SGD([weight], lr=1.0),
    "parameter": nn.Parameter,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_that_would_be_lost_is_refused(write: Any) -> None:
    with torch.no_grad(), pytest.raises(ModelError, match="the weight is read-only"):
        write(Counted().lazy())


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_training_that_would_be_lost_is_refused(wish: Any) -> None:
    with pytest.raises(ModelError, match="the weight does not train"):
        wish(Counted().lazy())


def test_freezing_it_and_reading_a_part_of_it_are_allowed() -> None:
    counted = Counted()
    lazy = counted.lazy()
    assert lazy.requires_grad_(False) is lazy
    lazy.requires_grad = False
    lazy.grad = None
    assert counted.times == 0
    assert torch.equal(lazy.T[1:] + 1, (2 * counted.x).T[1:] + 1)
    lazy[0].sum().backward()
    assert counted.x.grad is not None
    assert torch.equal(counted.x.grad[0], torch.full((4,), 2.0))


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
