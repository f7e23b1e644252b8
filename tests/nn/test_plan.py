"""Finding weights, matching patterns, ties, and putting packed modules in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from potq.config import PoTConfig
from potq.errors import ConfigError, ModelError
from potq.nn.install import install
from potq.nn.packed import PoTEmbedding, PoTLinear
from potq.nn.packed_model import packed_modules
from potq.nn.plan import plan
from potq.nn.properties import tensor_bytes
from potq.nn.weights import linear_weight
from potq.numerics.scheme import PRESETS
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.quantize import quantize


def tiny_gpt2() -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=20)).eval()


def test_plan_finds_every_linear_embedding_and_the_tied_head(tiny_model: LlamaForCausalLM) -> None:
    targets = plan(tiny_model, PoTConfig("pot4")).targets
    assert len(targets) == 1 + 2 * 7
    assert (targets[0].name, targets[0].kind, targets[0].tied) == ("model.embed_tokens", "embedding", ("lm_head",))
    assert targets[0].scheme == PRESETS["int8"]
    assert {target.scheme for target in targets[1:]} == {PRESETS["pot4"]}


def test_conv1d_is_planned_in_linear_orientation() -> None:
    targets = {target.name: target for target in plan(tiny_gpt2(), PoTConfig("pot4")).targets}
    assert targets["transformer.h.0.attn.c_attn"].shape == (48, 16)
    assert targets["transformer.wpe"].kind == "embedding"
    assert targets["transformer.wte"].tied == ("lm_head",)


def test_conv1d_becomes_a_linear_that_computes_the_same_product() -> None:
    model = tiny_gpt2()
    conv = model.transformer.h[0].attn.c_attn
    expected_weight, bias = conv.weight.detach().t().clone(), conv.bias
    quantize(model, PoTConfig("int8"))
    linear = model.transformer.h[0].attn.c_attn
    assert isinstance(linear, PoTLinear)
    assert linear.bias is bias
    assert float((linear.weight - expected_weight).abs().max()) < 0.01 * float(expected_weight.abs().max())


def test_overrides_and_ignores_by_pattern(tiny_model: LlamaForCausalLM) -> None:
    config = PoTConfig("pot4", targets={r"layers\.0\..*": "int4", "down_proj": "apot4"}, ignore=["k_proj"], embedding=None)
    result = plan(tiny_model, config)
    scheme = {target.name: target.scheme for target in result.targets}
    assert scheme["model.layers.0.mlp.down_proj"] == PRESETS["int4"]  # the first pattern wins
    assert scheme["model.layers.1.mlp.down_proj"] == PRESETS["apot4"]
    assert scheme["model.layers.1.self_attn.q_proj"] == PRESETS["pot4"]
    reasons = {skipped.name: skipped.reason for skipped in result.skipped}
    assert reasons["model.layers.1.self_attn.k_proj"] == "ignored by config"
    assert "embedding=None" in reasons["model.embed_tokens"]
    assert "embedding=None" in reasons["lm_head"]


def test_ignoring_a_tied_head_leaves_the_embedding_alone_too(tiny_model: LlamaForCausalLM) -> None:
    result = plan(tiny_model, PoTConfig("pot4", ignore=["lm_head"]))
    reasons = {skipped.name: skipped.reason for skipped in result.skipped}
    reason = "ignored by config through lm_head; they share one weight"
    assert reasons == dict.fromkeys(["model.embed_tokens", "lm_head"], reason)
    assert sum(skipped.nbytes for skipped in result.skipped) == tiny_model.lm_head.weight.nbytes


def test_tied_modules_must_agree_on_their_scheme(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(ConfigError, match=r"embed_tokens and lm_head are tied.*same scheme"):
        plan(tiny_model, PoTConfig("pot4", targets={"lm_head": "pot4"}))


def test_a_pattern_that_matches_nothing_is_an_error(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(ConfigError, match=r"'o_prj' matches no module; the modules are named like model\.embed_tokens"):
        plan(tiny_model, PoTConfig("pot4", ignore=["o_prj"]))


def test_a_quantized_model_is_refused(packed_model: nn.Module) -> None:
    with pytest.raises(ModelError, match="quantized already"):
        plan(packed_model, PoTConfig("pot4"))


def test_nothing_left_to_quantize_is_an_error(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(ModelError, match="nothing to quantize"):
        plan(tiny_model, PoTConfig("pot4", ignore=[".*"]))


def test_weights_that_do_not_fit_are_skipped_with_the_reason() -> None:
    model = nn.Module()
    model.integer = nn.Linear(4, 4)
    model.integer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    model.rewriting = nn.Embedding(4, 4, max_norm=1.0)
    model.convolution = nn.Conv3d(1, 1, 3)
    model.fine = nn.Linear(4, 4)
    result = plan(model, PoTConfig("pot4"))
    assert [target.name for target in result.targets] == ["fine"]
    reasons = {skipped.name: skipped.reason for skipped in result.skipped}
    assert "torch.int8" in reasons["integer"]
    assert "max_norm" in reasons["rewriting"]
    assert "Conv3d with a 1x1x3x3x3 weight" in reasons["convolution.weight"]


def test_plan_on_the_meta_device_equals_the_plan_of_the_model(tiny_model: LlamaForCausalLM) -> None:
    with torch.device("meta"):
        meta_model = LlamaForCausalLM(tiny_model.config)
    assert plan(meta_model, PoTConfig("pot4")) == plan(tiny_model, PoTConfig("pot4"))


def test_install_replaces_and_forgets_the_tie(tiny_model: LlamaForCausalLM) -> None:
    target = plan(tiny_model, PoTConfig("pot4")).targets[0]
    install(tiny_model, target, QuantizedWeight.empty(target.shape, target.scheme, "cpu"))
    assert isinstance(tiny_model.model.embed_tokens, PoTEmbedding)
    assert tiny_model.lm_head.tied_to is tiny_model.model.embed_tokens
    assert tiny_model.all_tied_weights_keys == {}
    assert set(packed_modules(tiny_model)) == {"model.embed_tokens", "lm_head"}


def test_module_hooks_and_attributes_survive(tiny_model: LlamaForCausalLM) -> None:
    layer = tiny_model.model.layers[0].mlp.up_proj
    seen: list[int] = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    quantize(tiny_model, PoTConfig("pot4"))
    tiny_model(torch.tensor([[1, 2]]))
    assert seen == [1]


def test_tensor_bytes_counts_ties_once(tiny_model: LlamaForCausalLM) -> None:
    assert tensor_bytes(tiny_model) == sum(parameter.nbytes for parameter in tiny_model.parameters())


def test_linear_weight_refuses_a_module_without_one() -> None:
    with pytest.raises(ModelError, match="Dropout has no weight"):
        linear_weight(nn.Dropout())
