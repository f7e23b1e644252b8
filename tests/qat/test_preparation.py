"""prepare and convert: in place, the same numbers before and after, on every kind of module."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import potq
from potq.config import PoTConfig
from potq.errors import ConfigError, ModelError
from potq.nn.packed_model import packed_modules
from potq.numerics.functional import codebook
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.qat import QATSettings, convert, prepare, refresh_scales
from potq.qat.nn import qat_class
from potq.qat.preparation import load_scale_state, qat_modules, scale_state

SCALES = ("fixed", "searched", "learned")


def tiny_gpt2(**changes: Any) -> GPT2LMHeadModel:
    """Conv1D linears, biases, a table of positions, a tied head."""
    fields = {"vocab_size": 260, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**fields | changes)).eval()


def train(model: nn.Module, tokens: Tensor, steps: int = 3, rate: float = 1e-2) -> None:
    """Some steps of Adam on next tokens; scales are outdated before each."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        refresh_scales(model)
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = model(tokens).logits
    return found


@pytest.mark.usefixtures("reference_backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_prepared_and_converted_models_agree_bit_for_bit(
    preset: str, dtype: torch.dtype, tiny_model: LlamaForCausalLM, tokens: Tensor
) -> None:
    model = tiny_model.to(dtype)
    settings = QATSettings(scales=SCALES[sorted(PRESETS).index(preset) % 3])
    prepare(model, PoTConfig(preset, group_size=32), settings)
    train(model, tokens)
    expected = logits(model, tokens)
    report = convert(model)
    assert {entry.algorithm for entry in report.modules} == {f"qat/{settings.scales}"}
    assert torch.equal(logits(model, tokens), expected)


@pytest.mark.usefixtures("reference_backend")
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize(
    "config",
    [
        PoTConfig("pot4", group_size="tensor"),
        PoTConfig("pot3", group_size="row", embedding=None),
        PoTConfig("pot4", group_size=24, embedding="apot4"),
        PoTConfig("pot4", group_size=32, scale_dtype="e8m0", row_scale=True),
        PoTConfig("pot4", group_size=32, rounding="log", scale_method="absmax"),
        PoTConfig("pot3s", group_size=32, embedding="apot3s"),
    ],
    ids=["tensor", "row", "ragged", "row-scale", "log", "signed"],
)
def test_they_agree_on_gpt2_under_every_form_of_scale(config: PoTConfig, scales: Any, tokens: Tensor) -> None:
    model = tiny_gpt2()
    prepare(model, config, QATSettings(scales=scales))
    before = logits(model, tokens)
    train(model, tokens)
    expected = logits(model, tokens)
    assert not torch.equal(before, expected)
    convert(model)
    assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("scales", ["fixed", "searched"])
def test_parameters_and_keys_stay_as_they_were(scales: Any, tiny_model: LlamaForCausalLM) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    parameters = dict(tiny_model.named_parameters())
    prepare(tiny_model, PoTConfig("pot4"), QATSettings(scales=scales))
    after = tiny_model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter is parameters[name] for name, parameter in tiny_model.named_parameters())


def test_learned_scales_are_the_only_parameters_that_come_and_they_go(tiny_model: LlamaForCausalLM) -> None:
    before = set(tiny_model.state_dict())
    prepare(tiny_model, PoTConfig("pot4"), QATSettings(scales="learned"))
    added = set(tiny_model.state_dict()) - before
    assert added
    assert all(name.endswith(".weight_log2_scale") for name in added)
    assert "lm_head.weight_log2_scale" not in added  # tied to the embedding
    convert(tiny_model)
    assert not [name for name in tiny_model.state_dict() if "log2" in name]


def test_without_training_it_is_round_to_nearest(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    packed = copy.deepcopy(tiny_model)
    potq.quantize(packed, PoTConfig("pot4"))
    prepare(tiny_model, PoTConfig("pot4"))
    convert(tiny_model)
    for name, module in packed_modules(packed).items():
        mine = packed_modules(tiny_model)[name]
        assert torch.equal(mine.quantized.packed, module.quantized.packed)
        assert torch.equal(mine.quantized.scale, module.quantized.scale)


@pytest.mark.usefixtures("reference_backend")
@pytest.mark.parametrize("make", [tiny_gpt2, None], ids=["gpt2", "llama"])
def test_training_goes_on_from_a_packed_model(make: Any, tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    model = make() if make else tiny_model
    start = copy.deepcopy(model)
    potq.quantize(start, PoTConfig("pot3", effort="gptq"), [tokens])
    prepare(model, start=start)
    assert torch.equal(logits(model, tokens), logits(start, tokens))
    convert(model)
    for name, module in packed_modules(start).items():
        assert torch.equal(packed_modules(model)[name].quantized.packed, module.quantized.packed)


def test_a_converted_model_is_saved_and_loaded(tiny_model: LlamaForCausalLM, tokens: Tensor, tmp_path: Any) -> None:
    prepare(tiny_model, PoTConfig("apot4"))
    train(tiny_model, tokens)
    convert(tiny_model)
    potq.save(tiny_model, tmp_path / "out")
    assert torch.equal(logits(potq.load(tmp_path / "out"), tokens), logits(tiny_model, tokens))


def test_scales_are_searched_only_when_they_are_outdated_and_only_in_training(
    tiny_model: LlamaForCausalLM, tokens: Tensor
) -> None:
    prepare(tiny_model, PoTConfig("pot4"), QATSettings(scales="searched"))
    first = {name: tensor.clone() for name, tensor in scale_state(tiny_model).items()}
    with torch.no_grad():
        for module in qat_modules(tiny_model).values():
            if module.tied_to is None:
                module.weight.mul_(1.3)
    tiny_model.train()(tokens)
    refresh_scales(tiny_model)
    tiny_model.eval()(tokens)
    assert all(torch.equal(tensor, first[name]) for name, tensor in scale_state(tiny_model).items())
    tiny_model.train()(tokens)
    assert all(not torch.equal(tensor, first[name]) for name, tensor in scale_state(tiny_model).items())


def test_scales_can_be_kept_apart(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    other = copy.deepcopy(tiny_model)
    for model in (tiny_model, other):
        prepare(model, PoTConfig("pot4"), QATSettings(scales="searched"))
    train(tiny_model, tokens)
    other.load_state_dict(tiny_model.state_dict())
    assert not torch.equal(logits(other, tokens), logits(tiny_model, tokens))
    load_scale_state(other, scale_state(tiny_model))
    assert torch.equal(logits(other, tokens), logits(tiny_model, tokens))
    with pytest.raises(ModelError, match="another model's"):
        load_scale_state(other, {})


def test_learned_scales_learn(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    prepare(tiny_model, PoTConfig("pot4"), QATSettings(scales="learned"))
    start = copy.deepcopy(scale_state(tiny_model))
    train(tiny_model, tokens)
    module = qat_modules(tiny_model)["model.layers.0.mlp.down_proj"]
    learned: Any = module._parameters["weight_log2_scale"]
    assert learned.abs().min() > 0
    expected = start["model.layers.0.mlp.down_proj.weight_scale"].float() * torch.exp2(learned)
    torch.testing.assert_close(module.quantized().scale.float(), expected, rtol=1e-3, atol=0)


def test_casting_leaves_stored_scales_alone(tiny_model: LlamaForCausalLM) -> None:
    prepare(tiny_model, PoTConfig("pot4"))
    before = {name: tensor.clone() for name, tensor in scale_state(tiny_model).items()}
    tiny_model.to(torch.bfloat16)
    for name, tensor in scale_state(tiny_model).items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_nothing(checkpointing: bool, tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    other = copy.deepcopy(tiny_model)
    for model in (tiny_model, other):
        prepare(model, PoTConfig("pot4"), QATSettings(scales="searched"))
    other.gradient_checkpointing_enable()
    train(tiny_model, tokens)
    train(other, tokens)
    for name, parameter in tiny_model.named_parameters():
        assert torch.equal(parameter, dict(other.named_parameters())[name]), name


# ---- modules with a forward of their own ---------------------------------------------------------------------------


class Scaled(nn.Embedding):
    """Like Gemma's: the look-up times a constant."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 8


class Offset(nn.Embedding):
    """Like OPT's: reads its weight itself."""

    def forward(self, input: Tensor) -> Tensor:
        return embedding(input + 2, self.weight)


class Inherited(nn.Linear):
    """A subclass that changes nothing."""


@pytest.mark.parametrize("kind", [Scaled, Offset])
def test_a_forward_of_its_own_sees_the_rounded_weight(kind: type[nn.Embedding]) -> None:
    module = kind(10, 16)
    ids, exact = torch.tensor([[1, 3]]), module.weight.detach().clone()
    scheme = QuantScheme("pot4", group_size=16)
    wrapped: Any = nn.Sequential(module)
    wrapped.config = GPT2Config()
    prepare(wrapped, PoTConfig("pot4", group_size=16, embedding=scheme))
    module.weight.requires_grad_()
    found = wrapped(ids)
    rounded = module.quantized().dequantize()
    expected = rounded[ids] * 8 if kind is Scaled else rounded[ids + 2]
    assert torch.equal(found, expected)
    assert torch.equal(module.weight, exact)
    found.sum().backward()
    assert module.weight.grad is not None
    assert isinstance(module, kind)
    convert(wrapped)
    assert torch.equal(wrapped(ids), expected)


def test_every_class_finds_its_way_back() -> None:
    for kind in (nn.Linear, nn.Embedding, Scaled, Inherited):
        module = kind(4, 16)
        wrapped: Any = nn.Sequential(module)
        wrapped.config = GPT2Config()
        prepare(wrapped, PoTConfig("pot4", group_size=16))
        assert type(module) is qat_class(kind)
        before = set(vars(nn.Sequential(kind(4, 16))[0]))
        module.restore()
        assert type(module) is kind
        assert set(vars(module)) == before


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_prepared_says_why(tiny_model: LlamaForCausalLM, packed_model: Any) -> None:
    with pytest.raises(ConfigError, match="needs a config"):
        prepare(tiny_model)
    with pytest.raises(ConfigError, match="needs text"):
        prepare(tiny_model, PoTConfig("pot4", scale_method="weighted"))
    with pytest.raises(ModelError, match="not a packed model"):
        prepare(tiny_model, start=copy.deepcopy(tiny_model))
    with pytest.raises(ModelError, match="quantized already"):
        prepare(packed_model, PoTConfig("pot4"))
    with pytest.raises(ModelError, match=r"as pot4-g64 .*the config asks for pot3-g64"):
        prepare(tiny_model, PoTConfig("pot3"), start=packed_model)
    bare = copy.deepcopy(tiny_model)
    potq.quantize(bare, PoTConfig("pot4", embedding=None))
    with pytest.raises(ModelError, match=r"no packed weight model\.embed_tokens"):
        prepare(tiny_model, PoTConfig("pot4"), start=bare)
    with pytest.raises(ModelError, match="not prepared"):
        convert(tiny_model)
    assert not qat_modules(tiny_model)
    prepare(tiny_model, PoTConfig("pot4"))
    with pytest.raises(ModelError, match="prepared for training"):
        prepare(tiny_model, PoTConfig("pot4"))
    with pytest.raises(ModelError, match="prepared for training"):
        potq.quantize(tiny_model, PoTConfig("pot4"))


def test_what_cannot_be_converted_changes_nothing(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    prepare(tiny_model, PoTConfig("pot4"))
    up_proj = tiny_model.model.layers[0].mlp.up_proj
    tiny_model.model.layers[0].mlp.up_proj = nn.Linear(64, 160)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.up_proj changed since the model was prepared"):
        convert(tiny_model)
    assert len(qat_modules(tiny_model)) == 15
    tiny_model.model.layers[0].mlp.up_proj = up_proj
    expected = logits(tiny_model, tokens)
    convert(tiny_model)
    assert torch.equal(logits(tiny_model.dequantize(), tokens), expected)


def test_how_to_get_the_logits_of_training(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    prepare(tiny_model, PoTConfig("pot4"))
    trained = logits(tiny_model, tokens)
    convert(tiny_model)
    assert (logits(tiny_model, tokens) - trained).abs().max() > 1e-3  # inputs are rounded to int8
    potq.kernels.set_activations(tiny_model, "float")
    torch.testing.assert_close(logits(tiny_model, tokens), trained, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(tiny_model.dequantize(), tokens), trained)


def test_an_adapter_is_merged_into_the_float_weights_of_a_prepared_model(tiny_model: LlamaForCausalLM) -> None:
    peft = pytest.importorskip("peft")
    plain, config = copy.deepcopy(tiny_model), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    prepare(tiny_model, PoTConfig("pot4"))
    merged = []
    for model in (plain, tiny_model):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, config)
        if model is tiny_model:
            with pytest.raises(ModelError, match="has an adapter"):
                convert(adapted)
        merged.append(adapted.merge_and_unload())
    for (name, expected), found in zip(merged[0].named_parameters(), merged[1].parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert convert(merged[1]).modules


def test_nan_scales_are_named(tiny_model: LlamaForCausalLM) -> None:
    prepare(tiny_model, PoTConfig("mxpot"), QATSettings(scales="learned"))
    name = "model.layers.0.mlp.up_proj"
    with torch.no_grad():
        tiny_model.get_parameter(f"{name}.weight_log2_scale")[0, 0] = torch.nan
    with pytest.raises(ModelError, match=rf"{name}\.weight_log2_scale has NaN or infinite entries; training diverged"):
        convert(tiny_model)


def test_scales_of_another_kind_are_refused(tiny_model: LlamaForCausalLM) -> None:
    other = copy.deepcopy(tiny_model)
    prepare(tiny_model, PoTConfig("pot4", group_size=32))
    prepare(other, PoTConfig("pot4", group_size=32, scale_dtype="e8m0"))
    with pytest.raises(ModelError, match="the scales are another model's, or of other schemes"):
        load_scale_state(other, scale_state(tiny_model))


def test_an_effort_that_nothing_was_done_of_is_not_recorded(tiny_model: LlamaForCausalLM) -> None:
    prepare(tiny_model, PoTConfig("pot4", effort="best"))
    convert(tiny_model)
    assert tiny_model.config.quantization_config.effort is None


def test_a_pass_in_inference_mode_spoils_nothing(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    codebook.cache_clear()
    prepare(tiny_model, PoTConfig("pot4"))
    with torch.inference_mode():
        tiny_model(tokens)
    tiny_model(tokens, labels=tokens).loss.backward()
    assert tiny_model.get_parameter("model.layers.0.mlp.up_proj.weight").grad is not None


def test_nan_weights_are_named_before_and_after(tiny_model: LlamaForCausalLM) -> None:
    broken = copy.deepcopy(tiny_model)
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj"):
        prepare(broken, PoTConfig("pot4"))
    assert not qat_modules(broken)
    prepare(tiny_model, PoTConfig("pot4"))
    tiny_model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj.*diverged"):
        convert(tiny_model)
    assert qat_modules(tiny_model)


def test_torch_compile_takes_the_modules_whole(tiny_model: LlamaForCausalLM) -> None:
    prepare(tiny_model, PoTConfig("pot4"), QATSettings(scales="learned"))
    mlp = tiny_model.model.layers[0].mlp
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for module in (mlp, torch.compile(mlp, fullgraph=True, backend="aot_eager")):
        mlp.zero_grad()
        module(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in mlp.parameters()])
    for mine, compiled in zip(*found, strict=True):
        assert torch.equal(mine, compiled)
