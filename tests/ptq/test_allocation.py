"""Which scheme every linear gets: measured sensitivities, the best grid of a layer, mixed precision under a budget."""

from __future__ import annotations

import copy
import itertools
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import potq
from moe_helpers import moe, tokens
from potq import PoTConfig, QuantScheme
from potq.errors import ConfigError, DataError, ModelError
from potq.nn.packed_model import packed_modules
from potq.ptq.algorithms.rtn import rtn
from potq.ptq.allocation import LayerOptions, Option, allocate, choose, measure, within_budget
from potq.ptq.calibration import mean_squared_gradients

CANDIDATES = ["pot2", "pot3", "pot3nz", "apot3", "pot4", "apot4"]
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def batches(tokens: Tensor) -> list[Tensor]:
    return list(tokens.split(1))


def linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]


# ---- measuring


def test_expected_loss_is_the_fisher_weighted_error(tiny_model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    layers = measure(tiny_model, PoTConfig("pot4"), ["pot3", "apot4"], batches)
    assert [layer.name for layer in layers] == linears(tiny_model)
    fisher = mean_squared_gradients(tiny_model, [UP], batches)[UP]
    weight = tiny_model.get_submodule(UP).weight.detach()
    (layer,) = [layer for layer in layers if layer.name == UP]
    for option, name in zip(layer.options, ("pot3", "apot4"), strict=True):
        error = weight - rtn(weight, QuantScheme(name)).dequantize()
        assert option.loss == pytest.approx(0.5 * float((fisher * error**2).sum()), rel=1e-5)
        assert option.scheme == QuantScheme(name)
        assert option.bits == QuantScheme(name).bits_per_weight(*layer.shape) * layer.weights


def test_measuring_changes_nothing(tiny_model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    before, state = copy.deepcopy(tiny_model.state_dict()), torch.random.get_rng_state()
    calls: list[tuple[int, int, str]] = []
    measure(tiny_model, PoTConfig("pot4"), ["pot3"], batches, progress=lambda *call: calls.append(call))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert [call[2] for call in calls] == linears(tiny_model)
    sizes = [tiny_model.get_submodule(name).weight.numel() for name in linears(tiny_model)]
    assert [call[:2] for call in calls] == [(sum(sizes[:index]), sum(sizes)) for index in range(14)]


def test_gpt2s_transposed_weights(tokens: Tensor) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    config = allocate(model, PoTConfig("pot4"), ["pot2", "pot3", "pot4"], [tokens], budget=3.0)
    report = potq.quantize(model, config)
    found = [module for module in report.modules if module.kind == "linear"]
    assert sum(m.bits_per_weight * math.prod(m.shape) for m in found) <= 3.0 * sum(math.prod(m.shape) for m in found)


# ---- what comes of it


def test_a_budget_is_met_by_the_quantized_model(tiny_model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    layers = measure(tiny_model, PoTConfig("apot4"), CANDIDATES, batches)
    found = choose(PoTConfig("apot4"), layers, budget=3.4)
    assert 3.2 < found.bits_per_weight <= 3.4
    assert len({option.scheme for option in found.choice.values()}) > 1
    report = potq.quantize(tiny_model, found.config)
    modules = {module.name: module for module in report.modules if module.kind == "linear"}
    assert {name: module.scheme for name, module in modules.items()} == {
        name: option.scheme.name for name, option in found.choice.items()
    }
    bits = sum(module.bits_per_weight * math.prod(module.shape) for module in modules.values())
    assert bits / sum(math.prod(module.shape) for module in modules.values()) == pytest.approx(found.bits_per_weight)
    assert report.modules[0].scheme == "int8-g64"  # the embedding's, as the config says


def test_one_exact_pattern_a_linear(tiny_model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    config = allocate(tiny_model, PoTConfig("pot4"), ["pot3", "pot3nz"], batches, budget=3.3)
    assert list(config.targets) == [re.escape(name) for name in linears(tiny_model)]
    assert PoTConfig.from_dict(config.to_dict()) == config
    assert (config.scheme, config.embedding) == (QuantScheme("pot4"), QuantScheme("int8"))


def test_without_a_budget_the_best_grid_of_the_same_size(tiny_model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    layers = measure(tiny_model, PoTConfig("pot3"), CANDIDATES, batches)
    found = choose(PoTConfig("pot3"), layers)
    for layer, option in zip(layers, found.choice.values(), strict=True):
        assert option == min((o for o in layer.options if o.scheme.grid.bits <= 3), key=lambda o: o.loss)
    assert found.bits_per_weight == pytest.approx(3.2619, abs=1e-4)  # 160 inputs are 3 groups
    with pytest.raises(ConfigError, match=r"q_proj: no candidate takes at most the 2\.2500 bits per weight of pot2-g64"):
        choose(PoTConfig("pot2"), measure(tiny_model, PoTConfig("pot2"), ["pot3"], batches))


def test_targets_and_ignored_modules_keep_precedence(tiny_model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    config = PoTConfig("pot4", targets={"down_proj": "int8"}, ignore=[r"layers\.0\..*"])
    found = allocate(tiny_model, config, ["pot3"], batches, budget=3.25)
    assert next(iter(found.targets.items())) == ("down_proj", QuantScheme("int8"))
    assert len(found.targets) == 7
    potq.quantize(tiny_model, found)
    schemes = {name: m.scheme.name for name, m in packed_modules(tiny_model).items() if name.startswith("model.layers")}
    assert schemes.pop("model.layers.1.mlp.down_proj") == "int8-g64"
    assert len(schemes) == 6
    assert set(schemes.values()) == {"pot3-g64"}


class Nested(nn.Module):
    """A model in which one linear's name ends like another's."""

    def __init__(self) -> None:
        super().__init__()
        self.config = GPT2Config(vocab_size=9)
        self.embed, self.fc, self.block = nn.Embedding(9, 8), nn.Linear(8, 8), nn.ModuleDict({"fc": nn.Linear(8, 9)})

    def forward(self, ids: Tensor, labels: Tensor, use_cache: bool) -> Any:
        logits = self.block["fc"](self.fc(self.embed(ids)))
        return type("Output", (), {"loss": nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:])})


def test_a_name_that_ends_anothers() -> None:
    config = allocate(Nested(), PoTConfig("pot4"), ["pot3"], [torch.arange(8)[None]])
    assert list(config.targets) == ["^fc", r"block\.fc"]
    assert [target.scheme for target in potq.nn.plan.plan(Nested(), config).targets if target.kind == "linear"] == [
        QuantScheme("pot3")
    ] * 2


def test_deterministic(tiny_model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    one, two = (allocate(tiny_model, PoTConfig("pot4"), CANDIDATES, batches, budget=3.0) for _ in range(2))
    assert one == two


def test_table_and_json(tiny_model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    found = choose(PoTConfig("pot4"), measure(tiny_model, PoTConfig("pot4"), ["pot2", "pot4"], batches), budget=3.5)
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found.table())
    shown = console.export_text()
    assert f"14 linears at {found.bits_per_weight:.4f} bits per weight" in shown
    assert "model.layers.*.mlp.up_proj" in shown
    document = found.to_dict()
    assert document["expected_loss"] == pytest.approx(sum(o.loss for o in found.choice.values()))
    assert set(document["layers"][UP]["expected_loss"]) == {"pot2-g64", "pot4-g64"}


# ---- under a budget


def options(rows: list[tuple[int, list[tuple[int, float]]]]) -> list[LayerOptions]:
    scheme = QuantScheme("pot4")
    return [
        LayerOptions(f"layer{n}", (1, weights), tuple(Option(scheme, bits * weights, loss) for bits, loss in found), ())
        for n, (weights, found) in enumerate(rows)
    ]


@st.composite
def problems(draw: st.DrawFn) -> list[LayerOptions]:
    count, candidates = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    option = st.tuples(st.integers(1, 8), st.floats(0, 100))
    row = st.tuples(st.integers(1, 50), st.lists(option, min_size=candidates, max_size=candidates))
    return options(draw(st.lists(row, min_size=count, max_size=count)))


def total(layers: list[LayerOptions], chosen: Any) -> tuple[int, float]:
    found = [layer.options[index] for layer, index in zip(layers, chosen, strict=True)]
    return sum(o.bits for o in found), math.fsum(o.loss for o in found)


@given(problems(), st.floats(0.5, 9))
def test_budgets_are_met_and_no_uniform_assignment_is_better(layers: list[LayerOptions], budget: float) -> None:
    weights = sum(layer.weights for layer in layers)
    least = sum(min(option.bits for option in layer.options) for layer in layers)
    if least > budget * weights:
        with pytest.raises(ConfigError, match="cannot be met"):
            within_budget(layers, budget)
        return
    bits, loss = total(layers, within_budget(layers, budget))
    assert bits / weights <= budget
    for index in range(len(layers[0].options)):
        uniform_bits, uniform_loss = total(layers, [index] * len(layers))
        assert uniform_bits > budget * weights or loss <= uniform_loss
    for number, layer in enumerate(layers):  # nothing is left that would help by itself
        chosen = within_budget(layers, budget)
        for index in range(len(layer.options)):
            moved_bits, moved_loss = total(layers, [*chosen[:number], index, *chosen[number + 1 :]])
            assert moved_bits > budget * weights or moved_loss >= loss - 1e-9


@given(problems(), st.floats(1, 8))
def test_close_to_the_best_there_is(layers: list[LayerOptions], budget: float) -> None:
    """By exhaustion: what is lost is less than the loss that one layer's steps could still save."""
    limit = budget * sum(layer.weights for layer in layers)
    every = [total(layers, chosen) for chosen in itertools.product(range(len(layers[0].options)), repeat=len(layers))]
    best = min((loss for bits, loss in every if bits <= limit), default=None)
    if best is not None:
        _, loss = total(layers, within_budget(layers, budget))
        spread = max(max(o.loss for o in layer.options) - min(o.loss for o in layer.options) for layer in layers)
        assert best - 1e-9 <= loss <= best + spread + 1e-9


def test_a_budget_that_is_just_met() -> None:
    layers = options([(64, [(3, 5.0), (4, 1.0)]), (64, [(3, 5.0), (4, 2.0)])])
    assert within_budget(layers, 4.0) == [1, 1]
    assert within_budget(layers, math.nextafter(4.0, 0)) == [1, 0]
    assert within_budget(layers, 3.0) == [0, 0]


def test_what_is_left_is_filled_with_smaller_steps() -> None:
    # the steep step of layer 0 costs 4 bits a weight and does not fit; its smaller one does
    layers = options([(10, [(2, 10.0), (4, 8.0), (6, 0.0)]), (10, [(2, 9.0), (2, 9.0), (3, 0.0)])])
    assert within_budget(layers, 3.5) == [1, 2]


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf])
def test_a_budget_that_is_none(budget: float) -> None:
    with pytest.raises(ConfigError, match=r"invalid budget .*; give a positive number"):
        within_budget(options([(1, [(2, 1.0)])]), budget)


def test_the_least_budget_is_named_and_can_be_met(tiny_model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    layers = measure(tiny_model, PoTConfig("pot4"), [QuantScheme("pot3", group_size=48), "pot4"], batches)
    with pytest.raises(ConfigError, match="a budget of 1 bits per weight cannot be met") as caught:
        choose(PoTConfig("pot4"), layers, budget=1)
    least = float(re.findall(r"at least ([\d.]+)", str(caught.value))[0])
    assert {option.scheme.grid.bits for option in choose(PoTConfig("pot4"), layers, budget=least).choice.values()} == {3}


# ---- what is refused


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], "candidates is empty"),
        (["pot3", "pot4", QuantScheme("pot3")], "candidates holds pot3-g64 twice"),
        (["pot9"], "unknown preset 'pot9'"),
        ("pot3", "give a list of schemes"),
    ],
)
def test_wrong_candidates(tiny_model: LlamaForCausalLM, batches: list[Tensor], candidates: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        allocate(tiny_model, PoTConfig("pot4"), candidates, batches)


@pytest.mark.parametrize("fields", [{"targets": {"proj|.*_proj": "pot3"}}, {"ignore": [".*_proj"]}])
def test_no_linear_is_left(tiny_model: LlamaForCausalLM, batches: list[Tensor], fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no linear is left to choose a scheme for"):
        allocate(tiny_model, PoTConfig("pot4", **fields), ["pot3"], batches)


@pytest.mark.parametrize("calibration", [[], [torch.tensor([1, 2])], [torch.tensor([[1, 260]])]])
def test_wrong_calibration(tiny_model: LlamaForCausalLM, calibration: list[Tensor]) -> None:
    with pytest.raises(DataError):
        allocate(tiny_model, PoTConfig("pot4"), ["pot3"], calibration)


def test_weights_that_are_nan(tiny_model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    tiny_model.get_submodule(UP).weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match=rf"{re.escape(UP)}\.weight has 1 NaN"):
        allocate(tiny_model, PoTConfig("pot4"), ["pot3"], batches)


def test_a_packed_model(packed_model: Any, batches: list[Tensor]) -> None:
    with pytest.raises(ModelError, match="quantized already"):
        allocate(packed_model, PoTConfig("pot4"), ["pot3"], batches)


def test_stacks_of_experts_get_schemes_too() -> None:
    """Chosen by the loss that rounding all of a layer's experts costs."""
    model, config = moe("qwen3_moe"), PoTConfig("pot3")
    chosen = choose(config, measure(model, config, ["pot2", "pot4"], [tokens()]), budget=3.5)
    names = [layer.name for layer in chosen.layers]
    stack = "model.layers.1.mlp.experts.down_proj"
    assert stack in names
    assert chosen.bits_per_weight <= 3.5
    quantized = potq.quantize(model, chosen.config)
    schemes = {entry.name: entry.scheme for entry in quantized.modules}
    assert all(
        schemes[layer.name] == layer.options[index].scheme.name
        for layer, index in zip(chosen.layers, chosen.chosen, strict=True)
    )
