"""Quantizing a whole model: in place, all or nothing, and truthfully reported."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import potq
from potq.config import EFFORTS
from potq.errors import ConfigError, ModelError
from potq.nn.losses import divergence
from potq.nn.packed_model import packed_modules
from potq.nn.plan import WeightPlan
from potq.nn.record import describe
from potq.nn.report import ModuleReport
from potq.ptq.algorithms import refine
from potq.ptq.algorithms.rtn import rtn
from potq.ptq.weight import check_weight, quantize_weight


def test_every_weight_is_what_the_algorithm_makes_of_it(tiny_model: LlamaForCausalLM) -> None:
    original = copy.deepcopy(tiny_model)
    potq.quantize(tiny_model, potq.PoTConfig("pot4", scale_candidates=5))
    for name, module in packed_modules(tiny_model).items():
        expected = rtn(original.get_submodule(name).weight, module.scheme, candidates=5)
        assert torch.equal(module.quantized.packed, expected.packed)
        assert torch.equal(module.quantized.scale, expected.scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scheme", ["pot4", "int8", "mxpot:row_scale=true"])
def test_a_weight_is_quantized_as_its_float32_copy_is(scheme: str, dtype: torch.dtype) -> None:
    weight = torch.randn(7, 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = WeightPlan("layer", "linear", (7, 100), potq.QuantScheme(scheme))
    (found, entry), (expected, report) = (
        quantize_weight(each, target, potq.PoTConfig("pot4")) for each in (weight, weight.float())
    )
    assert all(torch.equal(found.tensors()[name], tensor) for name, tensor in expected.tensors().items())
    assert entry.snr_db == report.snr_db
    assert entry.bytes_before == weight.nbytes


def test_a_weight_beyond_float32_is_refused_by_name() -> None:
    weight = torch.full((1, 32), 1e39, dtype=torch.float64)
    target = WeightPlan("layer", "linear", (1, 32), potq.PRESETS["mxpot"])
    for refuse in (check_weight, lambda w, t: quantize_weight(w, t, potq.PoTConfig("mxpot"))):
        with pytest.raises(ModelError, match=r"layer\.weight has 32 NaN or infinite entries"):
            refuse(weight, target)


def test_report_is_what_was_done(tiny_model: LlamaForCausalLM) -> None:
    original = copy.deepcopy(tiny_model)
    before = sum(parameter.nbytes for parameter in tiny_model.parameters())
    report = potq.quantize(tiny_model, potq.PoTConfig("pot3", ignore=["o_proj"]))
    assert report.bytes_before == before
    assert report.bytes_after == sum(tensor.nbytes for tensor in tiny_model.state_dict().values())
    assert [skipped.name for skipped in report.skipped] == [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)]
    for entry in report.modules:
        weight = original.get_submodule(entry.name).weight.detach()
        module = tiny_model.get_submodule(entry.name)
        error = module.weight - weight
        expected = 10 * math.log10(float(weight.square().sum()) / float(error.square().sum()))
        assert entry.snr_db == pytest.approx(expected, abs=1e-3)
        assert entry.output_snr_db is None
        assert entry.bytes_after * 8 / weight.numel() == pytest.approx(entry.bits_per_weight)
    assert report.modules[0].tied == ("lm_head",)


def test_calibration_adds_output_errors(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    original = copy.deepcopy(tiny_model)
    inputs: list[Tensor] = []
    layer = original.model.layers[1].mlp.down_proj
    layer.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with torch.no_grad():
        original(tokens)
    report = potq.quantize(tiny_model, potq.PoTConfig("pot4"), [tokens])
    entry = next(e for e in report.modules if e.name == "model.layers.1.mlp.down_proj")
    exact = layer.weight.detach()
    clean = inputs[0] @ exact.t()
    noise = inputs[0] @ (tiny_model.model.layers[1].mlp.down_proj.weight - exact).t()
    expected = 10 * math.log10(float(clean.square().sum()) / float(noise.square().sum()))
    assert entry.output_snr_db == pytest.approx(expected, abs=1e-2)
    assert all(e.output_snr_db is not None for e in report.modules)


def test_weighted_scales_lower_the_weighted_error(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    plain, weighted = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    by_mse = potq.quantize(plain, potq.PoTConfig("pot3", effort="fast"), [tokens])
    by_weight = potq.quantize(weighted, potq.PoTConfig("pot3", scale_method="weighted"), [tokens])
    linears = [(a, b) for a, b in zip(by_mse.modules, by_weight.modules, strict=True) if a.kind == "linear"]
    assert sum(float(b.output_snr_db or 0) - float(a.output_snr_db or 0) for a, b in linears) > 0
    assert {b.algorithm for _, b in linears} == {"rtn/weighted-exact"}
    assert by_weight.modules[0].algorithm == "rtn/mse-16"  # an embedding has no input features to weigh by


def test_weighted_without_calibration_is_refused(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(ConfigError, match="pass calibration="):
        potq.quantize(tiny_model, potq.PoTConfig("pot4", scale_method="weighted"))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_weights_are_named_and_the_model_stays_whole(bad: float, tiny_model: LlamaForCausalLM) -> None:
    tiny_model.model.layers[1].self_attn.v_proj.weight.data[0, :2] = bad
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.v_proj\.weight has 2 NaN or infinite entries"):
        potq.quantize(tiny_model, potq.PoTConfig("pot4"))
    assert not packed_modules(tiny_model)
    assert getattr(tiny_model.config, "quantization_config", None) is None


def test_weights_beyond_float16_need_e8m0(tiny_model: LlamaForCausalLM) -> None:
    tiny_model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"up_proj\.weight reaches 1e\+06.*e8m0"):
        potq.quantize(tiny_model, potq.PoTConfig("pot4"))
    potq.quantize(tiny_model, potq.PoTConfig("pot4", scale_dtype="e8m0"))
    assert float(tiny_model.model.layers[0].mlp.up_proj.weight[0, 0]) == pytest.approx(1e6, rel=0.5)


def test_progress_is_called_for_every_weight(tiny_model: LlamaForCausalLM) -> None:
    calls: list[tuple[int, int, str]] = []
    report = potq.quantize(tiny_model, potq.PoTConfig("pot4"), progress=lambda *call: calls.append(call))
    assert [call[2] for call in calls] == [entry.name for entry in report.modules]
    assert [call[:2] for call in calls] == weights_before(report.modules)


def weights_before(modules: list[ModuleReport]) -> list[tuple[int, int]]:
    """What is done before each module, and the whole: the embedding is one of 15 matrices, and a sixth of the weights."""
    sizes = [math.prod(module.shape) for module in modules]
    return [(sum(sizes[:index]), sum(sizes)) for index in range(len(sizes))]


def test_quantizing_does_not_touch_the_global_random_state(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    before = torch.random.get_rng_state()
    potq.quantize(tiny_model, potq.PoTConfig("pot4"), [tokens])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_describe_without_a_record_shows_what_the_tensors_show(packed_model: LlamaForCausalLM) -> None:
    recorded = describe(packed_model)
    del packed_model.quant_report
    shown = describe(packed_model)
    for entry, known in zip(shown.modules, recorded.modules, strict=True):
        assert (entry.name, entry.shape, entry.scheme, entry.bytes_after) == (
            known.name,
            known.shape,
            known.scheme,
            known.bytes_after,
        )
        assert entry.snr_db is None
    assert shown.bits_per_weight == recorded.bits_per_weight


def test_a_scale_beyond_float16_is_refused_by_the_scale_not_the_weight(tiny_model: LlamaForCausalLM) -> None:
    tiny_model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 60_000.0
    with pytest.raises(ModelError, match="e8m0"):  # int2 has no level above 1: its scale would be 120,000
        potq.quantize(copy.deepcopy(tiny_model), potq.PoTConfig("int2"))
    tiny_model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 80_000.0
    potq.quantize(
        tiny_model, potq.PoTConfig("apot4", scale_method="absmax")
    )  # 56 levels for a reference of 32: the scale fits
    assert float(tiny_model.model.layers[0].mlp.up_proj.weight[0, 0]) == pytest.approx(80_000, rel=0.01)


def test_calibration_leaves_every_module_in_its_mode(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    tiny_model.train()
    tiny_model.model.layers[0].eval()
    modes = {name: module.training for name, module in tiny_model.named_modules()}
    potq.quantize(tiny_model, potq.PoTConfig("pot4"), [tokens])
    assert {name: module.training for name, module in tiny_model.named_modules()} == modes


def test_e8m0_reports_the_scales_it_really_tried(tiny_model: LlamaForCausalLM) -> None:
    report = potq.quantize(tiny_model, potq.PoTConfig("mxfp4", scale_candidates=16))
    assert {entry.algorithm for entry in report.modules if entry.kind == "linear"} == {"rtn/mse-5"}


# ---- efforts


def tiny_gpt2() -> GPT2LMHeadModel:
    """Random weights, Conv1D layers with biases, a tied head, positions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_head=4, n_layer=2, n_positions=64)).eval()


@pytest.mark.parametrize("name", ["pot4", "pot3", "pot2", "int3", "nf4", "apot4", "mxfp4"])
@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_effort_on_every_kind_of_grid(
    kind: str, effort: str, name: str, tiny_model: LlamaForCausalLM, tokens: Tensor
) -> None:
    model: Any = tiny_model if kind == "llama" else tiny_gpt2()
    with torch.no_grad():
        teacher = model(tokens).logits
    biases = {key: value.clone() for key, value in model.state_dict().items() if key.endswith("bias")}
    report = potq.quantize(model, potq.PoTConfig(name, effort=effort), [tokens])
    labels = {entry.algorithm for entry in report.modules if entry.kind == "linear"}
    steps = EFFORTS[effort].steps
    expected = {"fast": "rtn/mse-exact", "potptq": "rtn" if name == "mxfp4" else "rtn+block-scales"}.get(effort, steps)
    assert labels == {expected}
    assert all(entry.output_snr_db is not None for entry in report.modules)
    assert model.config.quantization_config.effort == EFFORTS[effort]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in biases.items())
    for module in packed_modules(model).values():
        if module.tied_to is None:
            module.quantized.validate("weight")
    with torch.no_grad():
        assert divergence(model(tokens).logits, teacher) < (2.0 if kind == "llama" else 0.01)


def test_without_a_word_calibration_means_balanced_and_none_means_fast(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    for given, name in (([tokens], "balanced"), (None, "fast")):
        model = copy.deepcopy(tiny_model)
        potq.quantize(model, potq.PoTConfig("pot4"), given)
        assert model.config.quantization_config.effort == EFFORTS[name]


@pytest.mark.parametrize("name", ["pot3", "int3", "mxfp4"])
def test_more_effort_leaves_less_error(name: str, tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    batches, held_out = [(tokens + 11 * shift) % 260 for shift in range(8)], (tokens + 5) % 260
    with torch.no_grad():
        teacher = tiny_model(held_out).logits
    ratios, losses = {}, {}
    for effort in ("fast", "gptq", "balanced"):
        model = copy.deepcopy(tiny_model)
        report = potq.quantize(model, potq.PoTConfig(name, effort=effort), batches)
        linears = [float(e.output_snr_db or 0) for e in report.modules if e.kind == "linear"]
        ratios[effort] = sum(linears) / len(linears)
        with torch.no_grad():
            losses[effort] = float(divergence(model(held_out).logits, teacher))
    assert ratios["fast"] + 1 < ratios["balanced"]
    assert losses["balanced"] < losses["fast"]
    assert losses["gptq"] < losses["fast"]


@pytest.mark.parametrize("effort", ["balanced", "best"])
def test_a_killed_run_called_again_ends_the_same(
    effort: str, tiny_model: LlamaForCausalLM, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine, "_SAVE_SECONDS", -1.0)
    monkeypatch.setattr("potq.ptq.blocks.TOKENS", 48)
    config, batches = potq.PoTConfig("pot3", effort=effort), [tokens, (tokens + 50) % 260, (tokens + 90) % 260]
    whole, killed = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    potq.quantize(whole, config, batches)

    def kill(index: int, count: int, name: str) -> None:
        if index == 2 if name.startswith("refining") else effort == "balanced" and name.endswith("layers.1.mlp.gate_proj"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        potq.quantize(killed, config, batches, work_folder=tmp_path / "work", progress=kill)
    assert not packed_modules(killed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = potq.quantize(killed, config, batches, work_folder=tmp_path / "work")
    assert report == whole.quant_report
    for key, value in whole.state_dict().items():
        assert torch.equal(killed.state_dict()[key], value)


@pytest.mark.parametrize("other", ["model", "text", "config", "seed"])
def test_what_another_run_left_is_not_used(other: str, tiny_model: LlamaForCausalLM, tokens: Tensor, tmp_path: Path) -> None:
    config, seed, folder = potq.PoTConfig("pot3"), 0, tmp_path / "work"
    potq.quantize(copy.deepcopy(tiny_model), config, [tokens], work_folder=folder)
    if other == "model":
        tiny_model.model.layers[0].mlp.up_proj.weight.data[3, 5] += 0.1
    tokens = tokens.roll(1) if other == "text" else tokens
    config = potq.PoTConfig("pot3", group_size=32) if other == "config" else config
    seed = int(other == "seed")
    fresh = copy.deepcopy(tiny_model)
    with pytest.warns(UserWarning, match="left by another run"):
        potq.quantize(tiny_model, config, [tokens], seed=seed, work_folder=folder)
    potq.quantize(fresh, config, [tokens], seed=seed)
    assert all(torch.equal(tiny_model.state_dict()[key], value) for key, value in fresh.state_dict().items())


def test_progress_of_a_calibrated_run_names_every_layer(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    calls: list[tuple[int, int, str]] = []
    report = potq.quantize(tiny_model, potq.PoTConfig("pot4"), [tokens], progress=lambda *call: calls.append(call))
    assert sorted(call[2] for call in calls) == sorted(entry.name for entry in report.modules)
    by_name = {entry.name: entry for entry in report.modules}
    assert calls[0][2] == "model.embed_tokens"  # outside the blocks, and counted with them
    assert [call[:2] for call in calls] == weights_before([by_name[call[2]] for call in calls])
