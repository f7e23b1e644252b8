"""Calibration of experts, each on the tokens that are sent to it."""

from __future__ import annotations

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import potq
from moe_helpers import CASES, moe, tokens
from potq.config import EFFORTS, PoTConfig
from potq.kernels import set_activations
from potq.nn.experts import stacks
from potq.nn.language import language_plan
from potq.nn.packed_model import packed_modules
from potq.nn.report import ModuleReport, QuantReport
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.gptq import gptq
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.rounding import SchemeRounding
from potq.ptq.algorithms.rtn import rtn
from potq.ptq.estimate import estimate
from potq.ptq.experts import experts_apart, joined, ranges, together

CONFIG = PoTConfig("pot4", group_size=16, embedding=None)


def quantized(model: Any, effort: str, ids: Tensor | None = None, **changes: Any) -> QuantReport:
    config = CONFIG.model_copy(update={"effort": EFFORTS[effort], **changes})
    return potq.quantize(model, config, None if effort == "fast" else [tokens(4) if ids is None else ids])


def experts(report: QuantReport) -> list[ModuleReport]:
    return [entry for entry in report.modules if entry.kind == "experts"]


@pytest.mark.parametrize("family", CASES)
def test_every_family_is_calibrated(family: str, tmp_path: Path) -> None:
    """And comes back bit for bit."""
    model = moe(family)
    report = quantized(model, "balanced")
    assert {entry.algorithm for entry in experts(report)} == {"gptq+descent"}
    assert all(entry.shape[0] == 4 for entry in experts(report))
    potq.save(model, tmp_path / "out")
    loaded = potq.load(tmp_path / "out")
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4"])
def test_calibration_is_better_than_rounding(family: str) -> None:
    """On the text that it saw; of the logits' error, at least a fifth goes."""
    ids, errors = tokens(8), {}
    exact = moe(family)(ids).logits.detach()
    for effort in ("fast", "balanced"):
        model = moe(family)
        quantized(model, effort, ids)
        set_activations(model, "float")
        with torch.no_grad():
            errors[effort] = float((model(ids).logits - exact).square().sum())
    assert errors["balanced"] < 0.8 * errors["fast"]


def routed(model: Any, block: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the experts of ``block`` get, once: hidden states, and the experts that the router chose for each."""
    seen: list[tuple[Tensor, Tensor]] = []
    with block.experts.register_forward_pre_hook(lambda module, args: seen.append((args[0], args[1]))), torch.no_grad():
        model(ids)
    (found,) = seen
    return found


def test_an_expert_is_fit_to_its_own_tokens() -> None:
    """What GPTQ makes of the second moments of the tokens that the router sends to it, taken by hand."""
    model, ids = moe("qwen3_moe", num_hidden_layers=1), tokens(4)
    block = model.model.layers[0].mlp
    hidden, chosen = routed(model, block, ids)
    weights = [matrix.clone() for matrix in block.experts.gate_up_proj.detach()]
    # nothing before the experts is rounded, so that they see what they see in full precision
    ignored = CONFIG.model_copy(update={"ignore": ("q_proj", "k_proj", "v_proj", "o_proj"), "effort": EFFORTS["gptq"]})
    potq.quantize(model, ignored, [ids])
    found = packed_modules(model)["model.layers.0.mlp.experts.gate_up_proj"].quantized
    for number, weight in enumerate(weights):
        x = hidden[(chosen == number).any(-1)]
        hessian = x.T @ x / len(x)
        rounding = SchemeRounding.of(weight, CONFIG.scheme, hessian.diagonal())
        rows = slice(number * len(weight), (number + 1) * len(weight))
        expected = rounding.pack(gptq(weight, Hessian(hessian.clone()), rounding)).dequantize()
        assert torch.allclose(found.rows(rows).dequantize(), expected, atol=1e-6)


@pytest.mark.parametrize(("family", "reason"), [("qwen3_moe", "no text reaches it"), ("llama4", "its inputs are zero")])
def test_an_expert_that_no_token_reaches_is_rounded_and_named(family: str, reason: str) -> None:
    many = {"num_experts": 12} if family == "qwen3_moe" else {"num_local_experts": 12}
    model = moe(family, num_hidden_layers=1, **many)
    weights = {name: stack.as_matrix(stack.parameter.detach()).clone() for name, stack in stacks(model).items()}
    report = quantized(model, "balanced", tokens(1, 2))
    for entry in experts(report):
        usual, _, rest = entry.algorithm.partition(" (experts ")
        assert usual == "gptq+descent"
        numbers, _, label = rest.removesuffix(")").partition(": ")
        assert label == f"rtn/mse ({reason})"
        unreached = [n for part in numbers.split(", ") for n in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)]
        assert 12 - 4 <= len(unreached) <= 12 - 1
        assert numbers == ranges(unreached)
        packed, weight = packed_modules(model)[entry.name].quantized, weights[entry.name]
        rows = len(weight) // 12
        for number in unreached:
            part = slice(number * rows, (number + 1) * rows)
            assert torch.equal(packed.rows(part).dequantize(), rtn(weight[part], CONFIG.scheme).dequantize())
    assert f"experts {numbers}: rtn/mse ({reason}))" in report.to_markdown()


def test_refinement_of_the_whole_model_leaves_experts_as_they_are() -> None:
    balanced, best = moe("mixtral"), moe("mixtral")
    quantized(balanced, "balanced")
    report = quantized(best, "best")
    assert {entry.algorithm for entry in experts(report)} == {"gptq+descent"}
    assert {entry.algorithm for entry in report.modules if entry.kind == "linear"} == {"gptq+descent+model"}
    for name, module in packed_modules(balanced).items():
        same = torch.equal(module.quantized.packed, packed_modules(best)[name].quantized.packed)
        assert same or "experts" not in name


def test_refinement_of_blocks_learns_the_scales_of_experts() -> None:
    model, plain = moe("mixtral"), moe("mixtral")
    report = quantized(model, "potptq")
    quantized(plain, "fast")
    assert {entry.algorithm for entry in experts(report)} == {"rtn+block-scales"}
    names = [entry.name for entry in experts(report)]
    learned, rounded = packed_modules(model), packed_modules(plain)
    assert any(not torch.equal(learned[name].quantized.scale, rounded[name].quantized.scale) for name in names)


def test_one_scale_for_all_experts_is_not_calibrated() -> None:
    model = moe("mixtral")
    report = quantized(model, "balanced", scheme=potq.QuantScheme("int8", group_size="tensor"))
    assert {entry.algorithm for entry in experts(report)} == {"rtn/mse (one scale for all rows)"}


def test_the_float_model_is_as_it_was_after_an_error() -> None:
    model = moe("gpt_oss")
    before = copy.deepcopy(model.state_dict())

    def stop(done: int, total: int, name: str) -> None:
        if name.endswith("stacked_down_proj.1"):
            raise KeyboardInterrupt

    config = CONFIG.model_copy(update={"effort": EFFORTS["balanced"]})
    with pytest.raises(KeyboardInterrupt):
        potq.quantize(model, config, [tokens(4)], progress=stop)
    assert type(model.model.layers[0].mlp.experts).__name__ == "GptOssExperts"
    state = model.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"effort": EFFORTS["balanced"]})
    whole, resumed = moe("mixtral"), moe("mixtral")
    potq.quantize(whole, config, [tokens(4)])

    def stop(done: int, total: int, name: str) -> None:
        if name.startswith("model.layers.1."):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        potq.quantize(resumed, config, [tokens(4)], work_folder=tmp_path / "work", progress=stop)
    report = potq.quantize(resumed, config, [tokens(4)], work_folder=tmp_path / "work")
    assert {entry.algorithm for entry in experts(report)} == {"gptq+descent"}
    state, expected = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_an_estimate_counts_experts() -> None:
    dense = estimate(moe("mixtral", num_local_experts=2), CONFIG, [tokens(4)])
    assert estimate(moe("mixtral", num_local_experts=16), CONFIG, [tokens(4)]).seconds > dense.seconds


def test_experts_share_passes_over_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a stack in one, or as many as the memory is for; the result is the same."""
    states, counts = [], []
    for most in (1 << 30, 3 * 4 * 32**2, 1):
        monkeypatch.setattr(potq.ptq.experts, "MOMENT_BYTES", most)
        model, runs = moe("qwen3_moe", num_hidden_layers=1), Counter[str]()
        with model.model.layers[0].mlp.experts.register_forward_pre_hook(lambda *_, runs=runs: runs.update(["pass"])):
            quantized(model, "balanced")
        states.append(model.state_dict())
        counts.append(runs["pass"])
    assert all(torch.equal(states[0][key], other[key]) for other in states[1:] for key in other)
    # of 24 inputs more fit than of 32: 4 and 4 experts at once, 3 and 4, 1 and 1
    assert [count - counts[0] for count in counts] == [0, 1, 6]


def test_experts_of_a_stack_follow_one_another() -> None:
    up, down = [[f"mlp.stacked_up.{n}"] for n in range(3)], [[f"mlp.stacked_down.{n}"] for n in range(3)]
    run = [["q", "k"], up[0], down[0], up[2], down[2], ["shared"], up[1], down[1]]
    assert together(run) == [["q", "k"], up[0], up[2], up[1], down[0], down[2], down[1], ["shared"]]


def test_fisher_weighs_experts_and_knows_those_without_tokens() -> None:
    model = moe("qwen3_moe", num_hidden_layers=1, num_experts=12)
    weights = {name: stack.as_matrix(stack.parameter.detach()).clone() for name, stack in stacks(model).items()}
    config = CONFIG.model_copy(update={"scale_method": "fisher"})
    report = potq.quantize(model, config, [tokens(1, 3)])
    assert {entry.algorithm for entry in experts(report)} == {"rtn/fisher-exact"}
    for name, weight in weights.items():
        found, plain = packed_modules(model)[name].quantized.dequantize(), rtn(weight, CONFIG.scheme).dequantize()
        same = [torch.equal(*pair) for pair in zip(found.chunk(12), plain.chunk(12), strict=True)]
        assert 12 - 6 <= sum(same) < 12


def test_inputs_by_name_and_callables_calibrate_experts() -> None:
    config = CONFIG.model_copy(update={"effort": EFFORTS["balanced"]})
    states = []
    for calibration in ([tokens(4)], [{"input_ids": tokens(4)}], lambda model: model(input_ids=tokens(4))):
        model = moe("mixtral")
        report = potq.quantize(model, config, calibration)
        assert {entry.algorithm for entry in experts(report)} == {"gptq+descent"}
        states.append(model.state_dict())
    assert all(torch.equal(states[1][key], states[2][key]) for key in states[1])


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4"])
def test_a_model_that_is_read_in_parts_gives_the_same(family: str, tmp_path: Path) -> None:
    """A block is in memory at a time, with its experts alone; tensors and reports are equal."""
    config = CONFIG.model_copy(update={"effort": EFFORTS["balanced"]})
    ids = [tokens(4), tokens(3, 17)]
    moe(family).save_pretrained(tmp_path / "full")
    whole, parts = potq.load(tmp_path / "full"), potq.load(tmp_path / "full", stream=True)
    report = potq.quantize(whole, config, ids)
    assert potq.quantize(parts, config, ids, work_folder=tmp_path / "work").modules == report.modules
    state, found = whole.state_dict(), parts.state_dict()
    assert state.keys() == found.keys()
    assert all(torch.equal(state[key], found[key]) for key in state)


# ---- taking apart, putting together


def test_stacks_are_taken_apart_by_name() -> None:
    model = moe("gpt_oss")
    config = CONFIG.model_copy(update={"targets": {"down_proj": potq.QuantScheme("int8", group_size="tensor")}})
    block, start = model.model.layers[0], "model.layers.0."
    targets = language_plan(model, config)[1].targets
    inside = {t.name.removeprefix(start): t for t in targets if t.name.startswith(start)}
    with experts_apart(block, inside) as found:
        assert found.whole == ["mlp.experts.down_proj"]
        assert found.stacks == {"mlp.experts.gate_up_proj": [f"mlp.experts.stacked_gate_up_proj.{n}" for n in range(4)]}
        for name, target in found.apart.items():
            linear: Any = block.get_submodule(name)
            assert (target.name, target.shape, target.experts) == (start + name, tuple(linear.weight.shape), 0)
        assert len(found.apart) == 4 + 4


def test_joined_rows_are_those_of_the_parts() -> None:
    scheme = potq.QuantScheme("pot3", group_size=8, scale_dtype="e8m0", row_scale=True)
    weights = torch.randn(3, 5, 20, generator=torch.Generator().manual_seed(0))
    parts = [rtn(weight, scheme) for weight in weights]
    whole, label = joined(parts, ["a", "b (why)", "b (why)"])
    assert label == "a (experts 1-2: b (why))"
    assert torch.equal(whole.dequantize(), torch.cat([part.dequantize() for part in parts]))
    assert isinstance(whole, QuantizedWeight)
    assert whole.shape == (15, 20)
    assert joined(parts, ["a", "a", "a"])[1] == "a"


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([3]) == "3"


def test_the_report_has_the_error_of_experts_outputs() -> None:
    """Of all experts of a layer together, on the tokens that each gets."""
    model, ids = moe("qwen3_moe", num_hidden_layers=1), tokens(2)
    block = model.model.layers[0].mlp
    hidden, chosen = routed(model, block, ids)
    exact = block.experts.gate_up_proj.detach().clone()
    report = quantized(model, "balanced", ids)
    rounded = block.experts.gate_up_proj + 0
    signal = noise = 0.0
    for number in range(4):
        x = hidden[(chosen == number).any(-1)]
        signal += float((x @ exact[number].T).square().sum())
        noise += float((x @ (rounded - exact)[number].T).square().sum())
    (entry,) = [entry for entry in experts(report) if entry.name.endswith("gate_up_proj")]
    assert entry.output_snr_db == pytest.approx(10 * math.log10(signal / noise), abs=0.01)
    assert all(entry.output_snr_db is not None for entry in experts(report))
