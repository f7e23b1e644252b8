"""A model of which one part is in memory: what is read when, and that ties, buffers and flags survive it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potq.errors import ModelError
from potq.nn.parts import Part, Parts, bring, input_device, parts_of, stored


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = block(hidden)
        result: Tensor = self.head(self.norm(hidden))
        return result


ENDS: Part = ("embedding", "head")


@pytest.fixture
def made() -> tuple[Net, Net, list[Part]]:
    """The model in parts, the whole one, and the parts in the order they are read."""
    whole, read = Net().eval(), list[Part]()

    def fetch(part: Part) -> nn.Module:
        read.append(part)
        return copy.deepcopy(whole)

    model = copy.deepcopy(whole)
    for name in ("embedding", "blocks", "head"):
        getattr(model, name).to("meta")
    Parts(model, [ENDS, ("blocks.0",), ("blocks.1",)], fetch)
    return model, whole, read


def _here(model: nn.Module) -> set[str]:
    return {name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if not tensor.is_meta}


def test_a_pass_reads_every_part_when_it_runs(made: tuple[Net, Net, list[Part]]) -> None:
    model, whole, read = made
    assert torch.equal(model(torch.arange(5)), whole(torch.arange(5)))
    assert read == [ENDS, ("blocks.0",), ("blocks.1",), ENDS]
    assert _here(model) == {"embedding.weight", "norm.weight", "norm.bias"}


def test_what_is_brought_stays_until_another_part_is(made: tuple[Net, Net, list[Part]]) -> None:
    model, whole, read = made
    for name in ("blocks.1.", "blocks.1.0.weight", "blocks.1", "norm", "blocks"):
        bring(model, name)
    assert read == [("blocks.1",)]
    block = {f"blocks.1.{name}" for name in whole.blocks[1].state_dict()}
    assert _here(model) == block | {"norm.weight", "norm.bias"}
    bring(model, "head")
    assert model.head.weight is model.embedding.weight
    assert not any(name.startswith("blocks") for name in _here(model))


def test_gradients_are_wanted_or_not_as_before(made: tuple[Net, Net, list[Part]]) -> None:
    model = made[0]
    model.requires_grad_(False)
    bring(model, "blocks.0")
    assert not model.blocks[0][0].weight.requires_grad
    model.requires_grad_(True)
    bring(model, "blocks.1")
    bring(model, "blocks.0")
    assert model.blocks[0][0].weight.requires_grad


def test_the_state_dict_goes_by_part_after_part(made: tuple[Net, Net, list[Part]]) -> None:
    model, whole, read = made
    names = []
    for (name, tensor), (expected, other) in zip(stored(model), whole.state_dict().items(), strict=True):
        assert name == expected
        assert torch.equal(tensor, other)
        names.append(name)
    assert len(names) == len(whole.state_dict())
    assert read == [ENDS, ("blocks.0",), ("blocks.1",), ENDS]
    assert [name for name, _ in stored(whole)] == names


def test_settled_it_is_an_ordinary_model(made: tuple[Net, Net, list[Part]]) -> None:
    model, whole, read = made
    parts, kept = parts_of(model), list[tuple[Part, set[str]]]()
    assert parts is not None

    def keep(part: Part, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.append((part, set(tensors)))
        return {name: tensor.clone() for name, tensor in tensors.items()}

    bring(model, "blocks.0")
    parts.release()
    model.blocks[0] = nn.Sequential(nn.Identity(), model.blocks[0][1])  # something replaced the linear
    parts.settle(keep)
    assert kept[0] == (ENDS, {"embedding.weight"})  # tied: once
    assert kept[1][1] == {f"blocks.0.1.{name}" for name in whole.blocks[0][1].state_dict()}
    assert model.head.weight is model.embedding.weight
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert parts_of(model) is None
    assert model.double().norm.weight.dtype == copy.deepcopy(model).norm.weight.dtype == torch.float64
    model.float()
    del read[:]
    model(torch.arange(5))
    assert read == []


def test_inputs_go_where_weights_are_read_to(made: tuple[Net, Net, list[Part]]) -> None:
    model, whole, _ = made
    assert input_device(model) == input_device(whole) == torch.device("cpu")
    assert input_device(nn.Linear(2, 2, device="meta")) == torch.device("meta")


@pytest.mark.parametrize("change", [nn.Module.half, lambda model: model.to(torch.bfloat16), copy.deepcopy])
def test_what_would_be_lost_is_refused(made: tuple[Net, Net, list[Part]], change: Callable[[nn.Module], Any]) -> None:
    model, whole, _ = made
    with pytest.raises(ModelError, match="stream=True"):
        change(model)
    assert torch.equal(model(torch.arange(5)), whole(torch.arange(5)))
