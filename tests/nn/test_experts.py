"""Which parameters are stacks of experts' matrices, which way round they are, and which linears choose experts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe_helpers import FAMILIES, moe
from potq.config import PoTConfig
from potq.nn.experts import as_stack, routers, stacks
from potq.nn.language import language_plan
from potq.nn.plan import plan
from potq.nn.weights import Place


def pair(up: tuple[int, ...], down: tuple[int, ...]) -> nn.Module:
    """A module of experts that says nothing of itself."""
    module = nn.Module()
    module.gate_up_proj, module.down_proj = nn.Parameter(torch.zeros(up)), nn.Parameter(torch.zeros(down))
    return module


def found(module: nn.Module) -> dict[str, tuple[bool, tuple[int, int, int]]]:
    model = moe("mixtral")
    model.model.layers[0].mlp.experts = module
    start = "model.layers.0.mlp.experts."
    return {
        name.removeprefix(start): (stack.transposed, stack.shape)
        for name, stack in stacks(model).items()
        if name.startswith(start)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_nearly_all_weights_of_experts_are_targets(family: str) -> None:
    model = moe(family)
    _, todo = language_plan(model, PoTConfig("pot4"))
    dimensions = 2 if family == "dbrx" else 3
    stacked = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == dimensions and ("experts.mlp" in name or family != "dbrx") and "conv" not in name
    }
    planned = sum(target.weights for target in todo.targets if target.kind == "experts")
    assert planned >= 0.95 * sum(stacked.values()) > 0
    assert all(target.experts == 4 for target in todo.targets if target.kind == "experts")


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_and_outputs_are_told_apart(family: str) -> None:
    """A matrix that puts out hidden states has as many rows as these; one that takes them as many columns."""
    model = moe(family)
    for name, stack in stacks(model).items():
        _, rows, columns = stack.shape
        into = name.endswith(("gate_up_proj", "up_proj", "input_linear.weight", "w1", "v1"))
        assert (columns if into else rows) == model.config.hidden_size
        assert stack.transposed == (family in ("gpt_oss", "llama4") or name.endswith(".w2"))


def test_a_pair_tells_by_its_sizes_which_way_round_it_is() -> None:
    assert found(pair((4, 48, 32), (4, 32, 24))) == {
        "gate_up_proj": (False, (4, 48, 32)),
        "down_proj": (False, (4, 32, 24)),
    }
    assert found(pair((4, 32, 48), (4, 24, 32))) == {"gate_up_proj": (True, (4, 48, 32)), "down_proj": (True, (4, 32, 24))}
    assert found(pair((6, 48, 32), (4, 32, 24)))["gate_up_proj"] == (False, (6, 48, 32))  # some experts only hand on


@pytest.mark.parametrize(("up", "down"), [((4, 32, 32), (4, 32, 32)), ((4, 48, 32), (4, 24, 32)), ((4, 3, 5), (4, 7, 9))])
def test_a_pair_that_does_not_fit_is_left_and_listed(up: tuple[int, ...], down: tuple[int, ...]) -> None:
    assert found(pair(up, down)) == {}
    model = moe("mixtral")
    model.model.layers[0].mlp.experts = pair(up, down)
    reasons = {skipped.name: skipped.reason for skipped in plan(model, PoTConfig("pot4")).skipped}
    assert reasons["model.layers.0.mlp.experts.gate_up_proj"].endswith("weight is not supported")


def test_a_parallel_experts_of_other_sizes_is_no_stack() -> None:
    model = moe("jetmoe")
    model.model.layers[0].mlp.input_linear.input_size = 5
    assert "model.layers.0.mlp.input_linear.weight" not in stacks(model)
    assert "model.layers.0.mlp.output_linear.weight" in stacks(model)


def test_other_parameters_of_three_dimensions_are_no_stacks() -> None:
    assert not [name for name in stacks(moe("qwen3_next")) if "conv" in name]
    assert stacks(nn.Sequential(pair((4, 48, 32), (4, 32, 24)))) == {}  # no model of transformers


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "dbrx"])
def test_a_matrix_and_what_is_stored_are_inverses(family: str) -> None:
    for name, stack in stacks(model := moe(family)).items():
        place = Place.of(model, name)
        matrix = place.matrix(place.parameter.detach())
        experts, rows, columns = stack.shape
        assert matrix.shape == (experts * rows, columns)
        assert torch.equal(place.stored(matrix), stack.parameter)
        stored = stack.parameter.view(experts, -1, stack.parameter.shape[-1])
        assert torch.equal(matrix[rows : 2 * rows], stored[1].T if stack.transposed else stored[1])
        assert torch.equal(as_stack(matrix, experts, transposed=stack.transposed), stored)


# ---- routers


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("phimoe", ["mlp.router"]),
        ("llama4", ["feed_forward.router"]),
        ("dbrx", ["ffn.router.layer"]),
        ("jetmoe", ["mlp.router.layer", "self_attention.experts.router.layer"]),
        ("mixtral", []),  # its routers are no linears
    ],
)
def test_routers_are_found(family: str, names: list[str]) -> None:
    layers = "transformer.blocks" if family == "dbrx" else "model.layers"
    expected = {f"{layers}.{index}.{name}" for index in range(2) for name in names}
    assert set(routers(moe(family))) == expected


def test_routers_stay_unless_they_are_asked_for() -> None:
    model = moe("phimoe")
    config, todo = language_plan(model, PoTConfig("pot4"))
    assert config.ignore == (r"model\.layers\.\d+\.mlp\.router",)
    reasons = {skipped.name: skipped.reason for skipped in todo.skipped}
    assert reasons["model.layers.1.mlp.router"] == "it chooses experts; a pattern in targets asks for it"
    config, todo = language_plan(model, PoTConfig("pot4", targets={"router": "int8"}))
    assert config.ignore == ()
    assert "model.layers.1.mlp.router" in {target.name for target in todo.targets}


def test_a_list_of_experts_has_a_router_too() -> None:
    model = moe("mixtral")
    block = nn.Module()
    block.experts, block.gate = nn.ModuleList(nn.Linear(32, 32) for _ in range(4)), nn.Linear(32, 4)
    model.model.layers[0].mlp = block
    assert routers(model) == ["model.layers.0.mlp.gate"]
