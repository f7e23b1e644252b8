"""from_pretrained, save_pretrained and quantizing on the fly, on every family of architectures."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import potq
from potq.errors import CheckpointError, ModelError
from potq.kernels import set_activations
from potq.nn.packed import PackedModule
from potq.nn.packed_model import packed_modules
from potq.nn.weights import as_matrix

VOCABULARY = 97  # odd on purpose
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SMALL, "intermediate_size": 104, "num_key_value_heads": 2, "pad_token_id": 0, "head_dim": 12}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("Llama", {**GROUPED, "tie_word_embeddings": True}),
    "llama-untied": ("Llama", {**GROUPED, "attention_bias": True, "tie_word_embeddings": False}),
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "qwen3": ("Qwen3", {**GROUPED, "tie_word_embeddings": True}),
    "opt": ("OPT", {**SMALL, "ffn_dim": 104, "word_embed_proj_dim": 32, "max_position_embeddings": 64, "pad_token_id": 0}),
    "gpt-neox": ("GPTNeoX", {**SMALL, "intermediate_size": 104}),
    "mistral": ("Mistral", {**GROUPED}),
    "gemma3": ("Gemma3", {**GROUPED, "sliding_window": 16}),
    "phi3": ("Phi3", {**GROUPED}),
    "olmo": ("Olmo", {**SMALL, "intermediate_size": 104}),  # whose norms have no weights
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@cache
def _trained(family: str) -> Any:
    """A tiny model of the family after a few steps on text with structure; not to be changed."""
    name, fields = FAMILIES[family]
    config_class = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config"))
    model_class = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config_class(**fields))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(8):
            start = torch.randint(0, VOCABULARY, (8, 1))
            ids = (start + 3 * torch.arange(24)) % VOCABULARY
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def trained(family: str, dtype: torch.dtype = torch.float32) -> Any:
    if dtype == torch.float32:
        return copy.deepcopy(_trained(family))
    with tempfile.TemporaryDirectory() as folder:  # unlike .to(), from_pretrained keeps the rotary frequencies in float32
        _trained(family).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def logits(model: Any) -> Tensor:
    ids = torch.randint(0, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output: Tensor = model(ids).logits
    return output


def everything_at(preset: str, **fields: Any) -> potq.PoTConfig:
    scheme = potq.QuantScheme(preset, **fields)
    return potq.PoTConfig(scheme=scheme, embedding=scheme)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bitwise_exact(family: str, dtype: str, tmp_path: Path) -> None:
    model = trained(family, DTYPES[dtype])
    before = logits(model)
    report = potq.quantize(model, potq.PoTConfig("pot4", group_size=32, embedding="pot4"))
    after = logits(model)
    assert not torch.equal(before, after)
    assert not report.skipped
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), after)


ROWS: dict[str, Any] = {"group_size": 16, "scale_dtype": "e8m0", "row_scale": True, "signed_scale": False}


@pytest.mark.parametrize("fields", [{}, ROWS], ids=["preset", "row scales"])
@pytest.mark.parametrize("preset", potq.PRESETS)
def test_every_preset_survives_saving(preset: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model = trained("llama-tied")
    potq.quantize(model, everything_at(preset, **fields))
    potq.save(model, tmp_path / "out")
    assert torch.equal(logits(potq.load(tmp_path / "out")), logits(model))


@pytest.mark.parametrize("group_size", [1, 7, 48, "row", "tensor"])
def test_every_kind_of_group_survives_saving(group_size: int | str, tmp_path: Path) -> None:
    model = trained("gpt2")
    potq.quantize(model, everything_at("pot3", group_size=group_size))
    potq.save(model, tmp_path / "out")
    assert torch.equal(logits(potq.load(tmp_path / "out")), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_row_scales_of_every_family_stream_save_and_load(family: str, tmp_path: Path) -> None:
    trained(family).save_pretrained(tmp_path / "full")
    config = everything_at("pot4", **ROWS)
    streamed = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=config)
    model = trained(family)
    potq.quantize(model, config)
    assert torch.equal(logits(streamed), logits(model))
    potq.save(streamed, tmp_path / "packed")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "packed")), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_fly_equals_in_place(family: str, tmp_path: Path) -> None:
    trained(family).save_pretrained(tmp_path)
    config = potq.PoTConfig("apot4", embedding="int8")
    streamed = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    model = trained(family)
    report = potq.quantize(model, config)
    assert torch.equal(logits(streamed), logits(model))
    by_name = {module.name: module for module in report.modules}
    assert {module.name: module for module in streamed.quant_report.modules} == by_name
    assert streamed.quant_report.bytes_before == report.bytes_before


def test_on_the_fly_model_saves_and_loads(tmp_path: Path) -> None:
    trained("gpt2").save_pretrained(tmp_path / "full")
    model = potq.load(tmp_path / "full", potq.PoTConfig("pot4"))
    potq.save(model, tmp_path / "packed")
    assert torch.equal(logits(potq.load(tmp_path / "packed")), logits(model))


def test_sharded_source_and_output(tmp_path: Path) -> None:
    trained("llama-untied").save_pretrained(tmp_path / "full", max_shard_size=20_000)
    assert len(list((tmp_path / "full").glob("*.safetensors"))) > 2
    model = potq.load(tmp_path / "full", potq.PoTConfig("pot4"))
    potq.save(model, tmp_path / "packed", max_shard_size=8_000)
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) > 2
    assert torch.equal(logits(potq.load(tmp_path / "packed")), logits(model))


def test_tied_head_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    model = trained("llama-tied")
    potq.quantize(model, potq.PoTConfig("pot4"))
    assert [name for name in model.state_dict() if name.startswith("lm_head")] == []
    potq.save(model, tmp_path / "out")
    loaded = potq.load(tmp_path / "out")
    assert loaded.lm_head.tied_to is loaded.get_input_embeddings()
    loaded.tie_weights()
    assert torch.equal(logits(loaded), logits(model))


def test_two_different_weights_under_a_tied_config_are_both_kept(tmp_path: Path) -> None:
    model = trained("llama-tied")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0))
    model.all_tied_weights_keys = {}
    potq.quantize(model, potq.PoTConfig("pot4"))
    assert model.lm_head.tied_to is None
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_tied_weights_that_differ_in_row_scales_only_are_both_kept(tmp_path: Path) -> None:
    model = trained("llama-tied")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # twice a row scale of less than the largest octave moves the row scale alone
    state["lm_head.weight"] = state["lm_head.weight"] * 2
    model.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    streamed = potq.load(tmp_path, everything_at("pot4", **ROWS))
    head, embedding = streamed.lm_head, streamed.get_input_embeddings()
    assert head.tied_to is None
    assert torch.equal(head.weight_packed, embedding.weight_packed)
    assert torch.equal(head.weight_scale, embedding.weight_scale)
    assert torch.equal(head.weight, 2 * embedding.weight)


@pytest.mark.parametrize("same", [True, False])
def test_a_checkpoint_with_both_tied_weights_streams(same: bool, tmp_path: Path) -> None:
    model = trained("llama-tied")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if not same:
        state["lm_head.weight"] = state["lm_head.weight"].flip(0)
    model.save_pretrained(tmp_path)

    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    streamed = potq.load(tmp_path, potq.PoTConfig("pot4"))
    assert (streamed.lm_head.tied_to is not None) == same
    difference = streamed.lm_head.weight - state["lm_head.weight"]
    assert float(difference.square().sum()) < 1e-3 * float(state["lm_head.weight"].square().sum())
    potq.save(streamed, tmp_path / "out")
    assert torch.equal(logits(potq.load(tmp_path / "out")), logits(streamed))


def test_casting_a_packed_model_changes_neither_codes_nor_scales() -> None:
    model = trained("gpt2")
    potq.quantize(model, potq.PoTConfig("pot4"))
    before = {name: module.quantized for name, module in packed_modules(model).items()}
    model.to(torch.bfloat16).half()
    for name, module in packed_modules(model).items():
        assert torch.equal(module.quantized.scale, before[name].scale)
        assert torch.equal(module.quantized.packed, before[name].packed)
        assert module.weight.dtype == torch.float16
    assert logits(model).dtype == torch.float16


@pytest.mark.parametrize("fields", [{}, ROWS], ids=["float16", "row scales"])
def test_loading_in_another_dtype_keeps_the_scales(fields: dict[str, Any], tmp_path: Path) -> None:
    model = trained("llama-tied")
    potq.quantize(model, potq.PoTConfig("pot4", **fields))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    for name, module in packed_modules(loaded).items():
        read, written = module.quantized.tensors(), model.get_submodule(name).quantized.tensors()
        assert {part: tensor.dtype for part, tensor in read.items()} == {part: t.dtype for part, t in written.items()}
        assert all(torch.equal(tensor, written[part]) for part, tensor in read.items())


def test_generate_runs_on_a_packed_model() -> None:
    model = trained("qwen3")
    potq.quantize(model, potq.PoTConfig("pot4"))
    output = model.generate(torch.tensor([[5, 8, 11]]), max_new_tokens=5, do_sample=False)
    assert output.shape == (1, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_dequantized_it_computes_the_same(family: str, tmp_path: Path) -> None:
    """``model.dequantize()`` is the architecture's own float model, which needs potq no more."""
    full = trained(family)
    full.save_pretrained(tmp_path / "full")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=everything_at("pot4", group_size=16))
    set_activations(model, "float")
    packed = {name: module.quantized.dequantize() for name, module in packed_modules(model).items()}
    expected = logits(model)
    model = model.dequantize()
    assert not packed_modules(model)
    assert type(model) is type(full)
    assert {name: type(module) for name, module in model.named_modules()} == {
        name: type(module) for name, module in full.named_modules()
    }
    for name, matrix in packed.items():
        module = model.get_submodule(name)
        assert torch.equal(as_matrix(module, module.weight), matrix)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").read_text().count("quantization_config")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_a_resized_model_is_not_saved_as_what_it_was(tmp_path: Path) -> None:
    model = trained("llama-tied")
    potq.quantize(model, potq.PoTConfig("pot4"))
    model.save_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pytest.raises(ModelError, match="read-only"):
        loaded.resize_token_embeddings(VOCABULARY + 3)
    loaded.config.vocab_size += 3
    with pytest.raises(ModelError, match="changed since the model was quantized"):
        loaded.save_pretrained(tmp_path / "resized")


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_a_weight_that_is_read_without_a_call(effort: str, tmp_path: Path) -> None:
    """FalconMamba computes with the weight of a linear while it is float, and calls the linear when it is quantized."""
    torch.manual_seed(0)
    config = transformers.FalconMambaConfig(**SMALL, intermediate_size=96, state_size=8, pad_token_id=0)
    model = transformers.FalconMambaForCausalLM(config).eval()
    ids = torch.randint(0, VOCABULARY, (2, 20))
    report = potq.quantize(model, potq.PoTConfig("apot4", group_size=16, effort=effort), [ids])
    (algorithm,) = {module.algorithm for module in report.modules if module.name.endswith("dt_proj")}
    assert algorithm == ("rtn/mse-exact" if effort == "fast" else "rtn/mse (no text reaches it)")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_gemma_keeps_its_scaled_embedding() -> None:
    model = trained("gemma3")
    potq.quantize(model, potq.PoTConfig("pot4"))
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, PackedModule)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(embedding(ids), embedding.weight[ids] * embedding.embed_scale)


def test_on_the_fly_names_the_layer_with_nan_weights(tmp_path: Path) -> None:
    model = trained("llama-tied")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has 1 NaN"):
        potq.load(tmp_path, potq.PoTConfig("pot4"))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("weight_packed", r"missing: model\.layers\.0\.mlp\.up_proj\.weight_packed"),
        ("weight_scale", r"no .*up_proj\.weight_scale"),
    ],
)
def test_plain_from_pretrained_refuses_a_missing_tensor(lost: str, message: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = trained("llama-tied")
    potq.quantize(model, potq.PoTConfig("pot4"))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[f"model.layers.0.mlp.up_proj.{lost}"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "imports",
    [
        "import potq; from transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM; import potq",
        "import transformers.quantizers; import potq; from transformers import AutoModelForCausalLM",
    ],
)
def test_import_order_does_not_matter(imports: str, tmp_path: Path) -> None:
    model = trained("gpt2")
    potq.quantize(model, potq.PoTConfig("pot4"))
    model.save_pretrained(tmp_path)
    program = f"{imports}; m = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}); print(type(m.lm_head).__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "PoTLinear"


def test_importing_potq_does_not_import_torch() -> None:
    program = "import sys, potq; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_map(device_map: str, tmp_path: Path) -> None:
    trained("llama-tied").save_pretrained(tmp_path / "full")
    config = potq.PoTConfig("pot4")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=config, device_map=device_map)
    model.save_pretrained(tmp_path / "packed")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", device_map=device_map)
    assert torch.equal(logits(loaded), logits(model))


def test_two_weights_under_a_tied_config_survive_an_ignored_head(tmp_path: Path) -> None:
    model = trained("llama-tied")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0))
    model.all_tied_weights_keys = {}
    potq.quantize(model, potq.PoTConfig("pot4", ignore=["lm_head"]))
    potq.save(model, tmp_path / "out")
    assert torch.equal(logits(potq.load(tmp_path / "out")), logits(model))


# ---- other classes than the checkpoint's

IDS = torch.arange(1, 17)[None]


def packed(family: str) -> Any:
    model = trained(family)
    potq.quantize(model, potq.PoTConfig("pot4"))
    return model


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied", "gpt2", "opt", "gemma3", "mistral"])
def test_a_head_that_the_checkpoint_never_had_is_new_float_and_trains(family: str, tmp_path: Path) -> None:
    packed(family).save_pretrained(tmp_path / "packed")
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed", output_loading_info=True)
    assert info["missing_keys"] == {"score.weight"}  # of which transformers warns, as of a full-precision checkpoint's
    assert type(model.score) is nn.Linear
    causal = potq.load(tmp_path / "packed")
    with torch.no_grad():
        hidden = [each.base_model(IDS).last_hidden_state for each in (model, causal)]
    assert torch.equal(*hidden)
    before = model.score.weight.detach().clone()
    model(IDS, labels=torch.ones(len(IDS), dtype=torch.long)).loss.backward()
    torch.optim.SGD([model.score.weight], lr=1.0).step()
    assert not torch.equal(model.score.weight, before)
    model.save_pretrained(tmp_path / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_new_head_beside_weights_that_are_packed_while_they_load(tmp_path: Path) -> None:
    trained("llama-untied").save_pretrained(tmp_path)
    config = potq.PoTConfig("pot4")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path, quantization_config=config)
    assert type(model.score) is nn.Linear
    assert [skipped.name for skipped in model.quant_report.skipped] == ["score"]
    assert len(packed_modules(model)) == 15


def test_patterns_of_the_whole_model_serve_a_part_of_it(tmp_path: Path) -> None:
    full = trained("llama-untied")
    targets = {r"model\.layers\.0\.mlp\.up_proj": "pot3", "lm_head": "int8"}
    potq.quantize(full, potq.PoTConfig("pot4", targets=targets, ignore=[r"model\.layers\.1\.mlp\.up_proj"]))
    full.save_pretrained(tmp_path / "packed")
    base = AutoModel.from_pretrained(tmp_path / "packed")
    base.save_pretrained(tmp_path / "base")
    again = AutoModel.from_pretrained(tmp_path / "base")
    for part in (base, again):
        assert torch.equal(part(IDS).last_hidden_state, full.model(IDS).last_hidden_state)
        assert part.layers[0].mlp.up_proj.scheme == potq.QuantScheme("pot3")
        assert type(part.layers[1].mlp.up_proj) is nn.Linear


def test_a_map_to_the_meta_device(packed_folder: Path, tiny_folder: Path) -> None:
    """Which ended in "Tensor.item() cannot be called on meta tensors", as quantizing under such a map did."""
    model = AutoModelForCausalLM.from_pretrained(packed_folder, device_map={"": "meta"})
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert len(packed_modules(model)) == 16
    config = potq.PoTConfig("pot4")
    with pytest.raises(ModelError, match="weights on the meta device cannot be quantized; load without a device map"):
        AutoModelForCausalLM.from_pretrained(tiny_folder, device_map={"": "meta"}, quantization_config=config)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "quantized while it loads"])
def test_a_norm_that_is_missing_is_not_made_up(packed: bool, packed_folder: Path, tiny_folder: Path) -> None:
    folder = packed_folder if packed else tiny_folder
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    options = {} if packed else {"quantization_config": potq.PoTConfig("pot4")}
    with pytest.raises(CheckpointError, match=r"lacks model\.norm\.weight; it is incomplete, copy it again"):
        AutoModelForCausalLM.from_pretrained(folder, **options)
