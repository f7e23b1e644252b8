"""Calibrated quantization of the blocks: what every layer gets, what is reported, and that the model never changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import potq
from potq.config import EFFORTS, Effort
from potq.errors import ModelError
from potq.nn.losses import divergence
from potq.nn.packed_model import packed_modules
from potq.nn.plan import plan
from potq.nn.weights import linear_weight
from potq.ptq import experts, refinement
from potq.ptq.algorithms import refine
from potq.ptq.algorithms.descent import output_error
from potq.ptq.algorithms.gptq import gptq
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.learned import LearnedWeight
from potq.ptq.algorithms.rounding import SchemeRounding
from potq.ptq.algorithms.rtn import rtn
from potq.ptq.blocks import HiddenStates, find_blocks, record_calls, second_moments
from potq.ptq.layer import Layer
from potq.ptq.sequential import SequentialCalibration
from potq.resume import WorkFolder

SCHEMES = ["pot4", "pot3", "pot2", "int3", "nf4", "apot4", "mxfp4"]
EFFORT = Effort(compensate=True, rounds=1, scope="model", epochs=2)
WEIGHED = Effort(compensate=True, weigh_tokens=True)


def tiny_gpt2() -> GPT2LMHeadModel:
    """Random weights, Conv1D layers with biases, a tied head, positions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_head=4, n_layer=2, n_positions=64))
        for module in model.modules():
            if getattr(module, "bias", None) is not None:
                nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that must not change."""
    return {
        "tensors": {key: value.clone() for key, value in model.state_dict().items()},
        "memory": {name: parameter.data_ptr() for name, parameter in model.named_parameters()},
        "gradients": {name: (parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert all(torch.equal(after["tensors"][key], value) for key, value in before["tensors"].items())
    assert all(after[key] == before[key] for key in ("memory", "gradients", "modes"))
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not packed_modules(model)


def run(model: Any, effort: Effort, batches: list[Tensor], scheme: str = "pot3", **fields: Any) -> dict[str, Layer]:
    prefix = find_blocks(model)[0]
    targets = [t for t in plan(model, potq.PoTConfig(scheme)).targets if t.name.startswith(prefix)]
    return SequentialCalibration(model, targets, effort, batches, **fields).run()


def same(one: dict[str, Layer], other: dict[str, Layer]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(a, b) and one[name].algorithm == other[name].algorithm
        for name in one
        for a, b in zip(one[name].weight.tensors().values(), other[name].weight.tensors().values(), strict=True)
    )


@pytest.fixture
def batches(tokens: Tensor) -> list[Tensor]:
    """A few windows of two lengths."""
    return [(tokens + 7 * shift) % 260 for shift in range(3)] + [tokens[:, :9]]


# ---- what every layer gets


@pytest.mark.parametrize("name", SCHEMES)
def test_the_first_layers_are_gptqs_on_the_inputs_of_the_model(name: str, tiny_model: Any, batches: list[Tensor]) -> None:
    layers = run(tiny_model, EFFORTS["gptq"], batches, name)
    blocks = find_blocks(tiny_model)[1]
    states = HiddenStates(record_calls(tiny_model, list(blocks), potq.ptq.blocks.merge(batches)))
    hessian = second_moments(blocks[0], ["self_attn.q_proj"], states)[0]
    for layer in ("q_proj", "k_proj", "v_proj"):
        found = layers[f"model.layers.0.self_attn.{layer}"]
        rounding = SchemeRounding(found.weight.scheme)
        weight = blocks[0].get_submodule(f"self_attn.{layer}").weight.detach()
        assert torch.equal(found.weight.packed, rounding.pack(gptq(weight, Hessian(hessian.clone()), rounding)).packed)
        assert found.algorithm == "gptq"


@pytest.mark.parametrize("make", [lambda request: request.getfixturevalue("tiny_model"), lambda request: tiny_gpt2()])
def test_later_layers_see_the_inputs_that_the_quantized_ones_make(
    make: Callable[[Any], Any], batches: list[Tensor], request: pytest.FixtureRequest
) -> None:
    model = make(request)
    layers = run(model, EFFORTS["gptq"], batches)
    last = list(layers)[-1]
    quantized = copy.deepcopy(model)
    for name, layer in layers.items():
        if name != last:
            weight = linear_weight(quantized.get_submodule(name))
            weight.data.copy_(layer.weight.dequantize())
    inputs: list[Tensor] = []
    quantized.get_submodule(last).register_forward_pre_hook(
        lambda module, args: inputs.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for batch in batches:
            quantized(batch)
    x = torch.cat(inputs)
    hessian, weight = x.t() @ x / len(x), linear_weight(model.get_submodule(last)).detach()
    rounding = SchemeRounding(layers[last].weight.scheme)
    expected = gptq(weight.contiguous(), Hessian(hessian.clone()), rounding).values
    assert (expected == layers[last].weight.dequantize()).float().mean() > 0.98  # sums in another order turn some


def test_descent_lowers_every_layers_error(tiny_model: Any, batches: list[Tensor]) -> None:
    blocks = find_blocks(tiny_model)[1]
    states = HiddenStates(record_calls(tiny_model, list(blocks), batches))
    hessian = second_moments(blocks[0], ["self_attn.q_proj"], states)[0]
    weight = blocks[0].self_attn.q_proj.weight.detach()
    errors = []
    for effort in (EFFORTS["fast"], EFFORTS["gptq"], EFFORTS["balanced"]):
        layer = run(tiny_model, effort, batches)["model.layers.0.self_attn.q_proj"]
        errors.append(float(output_error(weight, layer.weight.dequantize(), hessian).sum()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("effort", "label"),
    [
        ("gptq", "gptq"),
        ("balanced", "gptq+descent"),
        ("best", "gptq+descent+model"),
        ("potptq", "rtn+block-scales"),
        (Effort(rounds=1, scope="block"), "descent+block"),
        (Effort(scope="model", codes=False), "rtn+model-scales"),
    ],
)
def test_layers_are_labelled_with_what_was_done(effort: Any, label: str, tiny_model: Any, batches: list[Tensor]) -> None:
    layers = run(tiny_model, EFFORTS[effort] if isinstance(effort, str) else effort, batches)
    assert {layer.algorithm for layer in layers.values()} == {label}
    assert len(layers) == 14


@pytest.mark.parametrize("scope", ["block", "model"])
def test_powers_of_two_are_not_learned_nor_said_to_be(scope: Any, tiny_model: Any, batches: list[Tensor]) -> None:
    layers = run(tiny_model, Effort(scope=scope, codes=False), batches, "mxfp4")
    assert same(layers, run(tiny_model, Effort(), batches, "mxfp4"))
    assert {layer.algorithm for layer in layers.values()} == {"rtn"}


def test_a_hessian_that_cannot_be_factored_is_reported(
    tiny_model: Any, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def moments(block: nn.Module, names: list[str], *rest: Any) -> list[Tensor]:
        found = second_moments(block, names, *rest)
        if names == ["mlp.down_proj"]:  # no damping makes that positive definite
            found[0] += 1000 * found[0].diagonal().mean() * (1 - torch.eye(len(found[0])))
        return found

    monkeypatch.setattr(experts, "second_moments", moments)
    for name, layer in run(tiny_model, EFFORTS["balanced"], batches).items():
        if name.endswith("down_proj"):
            assert layer.algorithm.startswith("rtn/weighted (the second moments of its inputs are not positive definite")
        else:
            assert layer.algorithm == "gptq+descent"


def test_one_scale_for_a_matrix_is_rounded_to_nearest_and_reported(tiny_model: Any, batches: list[Tensor]) -> None:
    original = copy.deepcopy(tiny_model)
    mixed = {"down_proj": {"preset": "pot4", "group_size": "tensor"}}
    for effort, others in (("best", "gptq+descent+model"), ("potptq", "rtn+block-scales")):
        model = copy.deepcopy(original)
        report = potq.quantize(model, potq.PoTConfig("pot3", targets=mixed, effort=effort), batches)
        for entry in report.modules[1:]:
            if entry.name.endswith("down_proj"):
                assert entry.algorithm == "rtn/mse (one scale for all rows)"
                module = packed_modules(model)[entry.name]
                expected = rtn(original.get_submodule(entry.name).weight, module.scheme)
                assert torch.equal(module.quantized.packed, expected.packed)
            else:
                assert entry.algorithm == others


def test_blocks_without_targets_are_passed_through(tiny_model: Any, batches: list[Tensor], tmp_path: Path) -> None:
    for effort in ("balanced", "potptq", "best"):
        model = copy.deepcopy(tiny_model)
        config = potq.PoTConfig("pot3", ignore=[r"layers\.0\..*"], effort=effort)
        report = potq.quantize(model, config, batches, work_folder=tmp_path / effort)
        assert len(report.modules) == 1 + 7
        assert len(report.skipped) == 7


def test_refinement_reckons_with_the_quantized_head(
    tiny_model: Any, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the backward pass too."""
    embedding = tiny_model.model.embed_tokens.weight.detach().clone()
    fixed = rtn(embedding, potq.QuantScheme("pot2"))
    found: dict[str, Tensor] = {}

    def fit(weights: list[LearnedWeight], loss: Any, batches: int, *_: Any) -> None:
        loss(0).backward()
        found["gradient"], found["start"] = weights[-1].latent.grad.clone(), weights[-1].latent.detach().clone()

    monkeypatch.setattr(refinement, "fit", fit)
    layers = run(tiny_model, EFFORT, batches, fixed={"model.embed_tokens": fixed})
    with torch.no_grad():
        teacher = tiny_model(potq.ptq.blocks.merge(batches)[0]).logits
    student = copy.deepcopy(tiny_model).requires_grad_(False)
    student.model.embed_tokens.weight.data.copy_(fixed.dequantize())
    for name, layer in layers.items():
        student.get_submodule(name).weight.data.copy_(layer.weight.dequantize())
    last = student.get_submodule(list(layers)[-1]).weight.requires_grad_(True)
    divergence(student(potq.ptq.blocks.merge(batches)[0]).logits, teacher).backward()
    passed = found["gradient"] != 0
    assert passed.float().mean() > 0.8
    torch.testing.assert_close(found["gradient"][passed], last.grad[passed], rtol=1e-3, atol=1e-7)
    assert torch.equal(tiny_model.model.embed_tokens.weight, embedding)


def test_files_give_the_same_as_memory(tiny_model: Any, batches: list[Tensor]) -> None:
    effort = Effort(compensate=True, scope="block")
    assert same(run(tiny_model, effort, batches), run(tiny_model, effort, batches, cache_bytes=0))


# ---- the model stays as it is


@pytest.mark.parametrize("at", [0, 9, 14])
@pytest.mark.parametrize("effort", [EFFORTS["balanced"], Effort(scope="block"), EFFORT])
def test_an_error_leaves_nothing_behind(effort: Effort, at: int, tiny_model: Any, batches: list[Tensor]) -> None:
    tiny_model.train()
    tiny_model.model.layers[0].eval()
    tiny_model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    before, told = snapshot(tiny_model), 0

    def fail(*_: Any) -> None:
        nonlocal told
        if told == at:
            raise ZeroDivisionError
        told += 1

    config = potq.PoTConfig("pot3", effort=effort)
    if at == 14 and effort.scope != "model":
        at = 13
    with pytest.raises(ZeroDivisionError):
        potq.quantize(tiny_model, config, batches, progress=fail)
    assert_untouched(tiny_model, before)


@pytest.mark.parametrize("effort", [EFFORTS["balanced"], EFFORTS["potptq"], EFFORT])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_walk_changes_nothing(effort: Effort, kind: str, tiny_model: Any, batches: list[Tensor]) -> None:
    model = tiny_model if kind == "llama" else tiny_gpt2()
    before, random = snapshot(model), torch.get_rng_state()
    assert same(run(model, effort, batches), run(model, effort, batches))
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("effort", ["gptq", "balanced", "best", "potptq"])
def test_activations_that_are_not_finite_are_named(effort: str, tiny_model: Any, batches: list[Tensor]) -> None:
    with torch.no_grad():
        tiny_model.model.layers[1].post_attention_layernorm.weight[0] = torch.inf
    before = snapshot(tiny_model)
    with pytest.raises(ModelError, match=r"^model\.layers\.1\.mlp\.(gate|up)_proj: its inputs .* are NaN or infinite; load"):
        potq.quantize(tiny_model, potq.PoTConfig("pot3", effort=effort), batches)
    assert_untouched(tiny_model, before)


def test_a_refinement_that_diverges_leaves_the_model_whole(tiny_model: Any, batches: list[Tensor]) -> None:
    before = snapshot(tiny_model)
    effort = Effort(scope="block", scale_rate=1e30, epochs=3)
    with pytest.raises(ModelError, match="refinement diverged"):
        potq.quantize(tiny_model, potq.PoTConfig("pot3", effort=effort), batches)
    assert_untouched(tiny_model, before)


# ---- killed and called again


@pytest.mark.parametrize("at", [3, 8, 18])
@pytest.mark.parametrize("effort", [EFFORTS["balanced"], WEIGHED, Effort(compensate=True, scope="block"), EFFORT])
def test_a_killed_run_goes_on_to_the_same_result(
    effort: Effort,
    at: int,
    tiny_model: LlamaForCausalLM,
    batches: list[Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refine, "_SAVE_SECONDS", -1.0)
    monkeypatch.setattr("potq.ptq.blocks.TOKENS", 48)  # some steps an epoch
    expected, told = run(tiny_model, effort, batches), 0

    def kill(*_: Any) -> None:
        nonlocal told
        if told == min(at, 13 if effort.scope != "model" else at):
            raise KeyboardInterrupt
        told += 1

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, effort, batches, folder=WorkFolder(tmp_path, "a"), progress=kill)
    again: list[str] = []
    found = run(tiny_model, effort, batches, folder=WorkFolder(tmp_path, "a"), progress=lambda *call: again.append(call[2]))
    assert same(found, expected)
    everything = 22 if effort.scope == "model" else 14
    kept = 0 if at < 7 else 7 if at < 14 or effort.scope != "model" else at
    assert len(again) == everything - kept


def test_a_damaged_block_is_done_again(tiny_model: Any, batches: list[Tensor], tmp_path: Path) -> None:
    expected = run(tiny_model, EFFORTS["balanced"], batches, folder=WorkFolder(tmp_path, "a"))
    file = tmp_path / "block-0001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    told: list[str] = []
    found = run(
        tiny_model, EFFORTS["balanced"], batches, folder=WorkFolder(tmp_path, "a"), progress=lambda *c: told.append(c[2])
    )
    assert same(found, expected)
    assert len(told) == 7
    assert all(name.startswith("model.layers.1.") for name in told)
    assert file.read_bytes() == whole


def test_a_finished_run_is_read_back(tiny_model: Any, batches: list[Tensor], tmp_path: Path) -> None:
    for number, effort in enumerate((EFFORTS["balanced"], EFFORT)):
        folder = tmp_path / str(number)
        expected = run(tiny_model, effort, batches, folder=WorkFolder(folder, "a"))
        assert same(run(tiny_model, effort, batches, folder=WorkFolder(folder, "a")), expected)
