"""Folders with packed experts: every way to make and to read one, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM
from typer.testing import CliRunner

import potq
from moe_helpers import CASES, moe, tokens
from potq.checkpoint.folder import read_headers
from potq.cli.app import app
from potq.errors import CheckpointError, ConfigError, ExportError, ModelError
from potq.export.compressed_tensors import export_compressed_tensors
from potq.export.gguf.write import export_gguf
from potq.export.output import refuse_experts
from potq.kernels import set_activations
from potq.nn.packed_model import packed_modules
from potq.nn.stacked import PoTStack

CONFIG = potq.PoTConfig("apot4", group_size=16)
STACK = "model.layers.0.mlp.experts.gate_up_proj"


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens()).logits
    return found


def same(model: nn.Module, other: nn.Module) -> bool:
    state, found = model.state_dict(), other.state_dict()
    return state.keys() == found.keys() and all(torch.equal(state[key], found[key]) for key in state)


def fields(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def change(folder: Path, **changes: Any) -> None:
    """Of ``quantization_config``; None drops a key."""
    config = fields(folder)
    config["quantization_config"] |= changes
    config["quantization_config"] = {key: value for key, value in config["quantization_config"].items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("family", CASES)
def test_every_way_to_pack_and_to_read_gives_the_same(family: str, tmp_path: Path) -> None:
    """In memory, while the experts are read from a file that may hold each by itself, and by transformers alone."""
    source = moe(family).to(torch.float32 if family in ("mixtral", "llama4") else torch.bfloat16)
    source.save_pretrained(tmp_path / "source")
    streamed = potq.load(tmp_path / "source", CONFIG)
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "source", quantization_config=CONFIG)
    potq.quantize(source, CONFIG)
    assert any(isinstance(module, PoTStack) for module in packed_modules(source).values())
    assert same(streamed, source)
    assert same(by_transformers, source)
    assert streamed.quant_report.modules == source.quant_report.modules
    potq.save(streamed, tmp_path / "packed")
    by_transformers.save_pretrained(tmp_path / "by-transformers")
    for folder in ("packed", "by-transformers"):
        assert fields(tmp_path / folder)["quantization_config"]["features"] == ["expert-stacks"]
        for loaded in (potq.load(tmp_path / folder), AutoModelForCausalLM.from_pretrained(tmp_path / folder)):
            assert same(loaded, source)
            assert torch.equal(logits(loaded), logits(streamed))


def test_a_folder_in_shards(tmp_path: Path) -> None:
    model = moe("mixtral")
    potq.quantize(model, CONFIG)
    potq.save(model, tmp_path / "out", max_shard_size="20KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert same(potq.load(tmp_path / "out"), model)


def test_other_classes_read_the_folder(tmp_path: Path) -> None:
    model = moe("qwen3_moe")
    potq.quantize(model, CONFIG)
    potq.save(model, tmp_path / "out")
    base = AutoModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(base(tokens()).last_hidden_state, model.model(tokens()).last_hidden_state)


def test_a_dequantized_model_saves_and_loads_as_one_that_never_was_packed(tmp_path: Path) -> None:
    model = moe("mixtral")
    potq.quantize(model, CONFIG)
    model.dequantize().save_pretrained(tmp_path / "floats")
    loaded = potq.load(tmp_path / "floats")
    assert "quantization_config" not in fields(tmp_path / "floats")
    assert same(loaded, model)


def test_experts_of_older_folders_are_floats(tmp_path: Path) -> None:
    """potq 0.1 left them, and its folders name no feature."""
    model = moe("mixtral")
    potq.quantize(model, potq.PoTConfig("pot4", ignore=[r"experts\..*"]))
    potq.save(model, tmp_path / "old")
    assert fields(tmp_path / "old")["quantization_config"]["features"] == []
    change(tmp_path / "old", ignore=[], features=None)
    loaded = potq.load(tmp_path / "old")
    assert same(loaded, model)
    assert type(loaded.model.layers[0].mlp.experts).__name__ == "MixtralExperts"
    potq.save(loaded, tmp_path / "again")
    assert same(potq.load(tmp_path / "again"), model)


def test_patterns_choose_among_stacks(tmp_path: Path) -> None:
    model = moe("qwen3_moe")
    config = potq.PoTConfig("pot4", targets={r"layers\.0\..*\.down_proj": "int8"}, ignore=[r"layers\.1\.mlp\.experts\..*"])
    potq.quantize(model, config)
    found = {name: module.scheme.name for name, module in packed_modules(model).items() if isinstance(module, PoTStack)}
    assert found == {STACK: "pot4-g64", STACK.replace("gate_up", "down"): "int8-g64"}
    potq.save(model, tmp_path / "out")
    assert same(potq.load(tmp_path / "out"), model)
    with pytest.raises(ConfigError, match=r"pattern 'up_proj' matches no module"):
        potq.quantize(moe("qwen3_moe"), potq.PoTConfig("pot4", ignore=["up_proj"]))


# ---- further stages


def test_adapters_train_on_packed_experts(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    for family in ("mixtral", "gpt_oss", "llama4"):
        model = moe(family)
        potq.quantize(model, CONFIG)
        potq.save(model, tmp_path / family)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        optimizer = torch.optim.Adam([each for each in adapted.parameters() if each.requires_grad], lr=2e-2)
        losses = []
        for _ in range(6):
            loss = adapted(tokens(), labels=tokens()).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] - 0.02
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(potq.load(tmp_path / "llama4"), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(adapted.eval()))


def test_training_leaves_experts_in_full_precision(tmp_path: Path) -> None:
    model = moe("mixtral")
    todo = potq.qat.prepare(model, CONFIG)
    assert {s.reason for s in todo.skipped if "experts" in s.name} == {"experts are left in full precision here"}
    model(tokens(), labels=tokens()).loss.backward()
    assert model.model.layers[0].mlp.experts.down_proj.grad is not None
    potq.qat.convert(model)
    potq.save(model, tmp_path / "out")
    assert fields(tmp_path / "out")["quantization_config"]["features"] == []
    assert same(potq.load(tmp_path / "out"), model)


def test_training_starts_with_packed_experts() -> None:
    start, model = moe("gpt_oss"), moe("gpt_oss")
    potq.quantize(start, CONFIG)
    potq.qat.prepare(model, start=start)
    set_activations(start, "float")
    with torch.no_grad():
        for name, module in packed_modules(start).items():
            if isinstance(module, PoTStack):
                assert torch.equal(model.get_parameter(name), module.weight + 0)


@pytest.mark.parametrize("export", [export_gguf, export_compressed_tensors])
def test_exports_refuse_experts_by_name(export: Any, byte_tokenizer: Any, tmp_path: Path) -> None:
    model = moe("qwen3_moe")
    potq.quantize(model, potq.PoTConfig("mxfp4"))
    with pytest.raises(ExportError, match=rf"{STACK} is a stack of experts' matrices, which the export to .* cannot write"):
        export(model, tmp_path / ("out.gguf" if export is export_gguf else "out"), byte_tokenizer)
    assert not list(tmp_path.iterdir())


def test_an_export_without_packed_experts_goes_on() -> None:
    model = moe("qwen3_moe")
    potq.quantize(model, potq.PoTConfig("mxfp4", ignore=[r"experts\..*"]))
    refuse_experts(model, "gguf")


def test_inspecting_a_folder_shows_its_experts(tmp_path: Path) -> None:
    model = moe("mixtral")
    model.save_pretrained(tmp_path / "source")
    potq.quantize(model, CONFIG)
    potq.save(model, tmp_path / "packed")
    for folder, options in (("packed", []), ("source", ["--scheme", "apot4:group_size=16"])):
        result = CliRunner().invoke(app, ["inspect", str(tmp_path / folder), "--json", *options])
        assert result.exit_code == 0, result.output
        shown = {entry["name"]: entry for entry in json.loads(result.stdout)["modules"]}
        name = "model.layers.0.mlp.experts.gate_up_proj"
        assert (shown[name]["kind"], shown[name]["shape"]) == ("experts", [4, 96, 32])
    (tmp_path / "packed" / "quant_report.json").unlink()
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "packed"), "--json"])
    shown = {entry["name"]: entry for entry in json.loads(result.stdout)["modules"]}
    assert (shown[name]["kind"], shown[name]["shape"]) == ("experts", [4, 96, 32])


# ---- bad input


def edit(folder: Path, key: str, changed: Tensor | None) -> None:
    """Change a tensor of the file, or take it out."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[key]
    if changed is not None:
        tensors[key] = changed
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("config", [None, CONFIG])
def test_experts_that_cannot_be_stacked_are_named(config: potq.PoTConfig | None, tmp_path: Path) -> None:
    moe("qwen3_moe").save_pretrained(tmp_path)
    key = "model.layers.0.mlp.experts.2.up_proj.weight"
    edit(tmp_path, key, torch.zeros(23, 32))
    with pytest.raises(CheckpointError, match=rf"{key} has shape \[23, 32\], that of other experts \[24, 32\]"):
        potq.load(tmp_path, config)
    edit(tmp_path, key, None)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors lacks {key}, which other experts have"):
        potq.load(tmp_path, config)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = moe("gpt_oss")
    model.model.layers[1].mlp.experts.down_proj.data[2, 3, 4] = torch.nan
    model.save_pretrained(tmp_path)
    message = r"model\.layers\.1\.mlp\.experts\.down_proj has 1 NaN or infinite entries"
    with pytest.raises(ModelError, match=message):
        potq.quantize(model, CONFIG)
    with pytest.raises(ModelError, match=message):
        potq.load(tmp_path, CONFIG)


def test_a_packed_folder_that_lacks_or_damages_a_stack_is_refused(tmp_path: Path) -> None:
    model = moe("qwen3_moe")
    potq.quantize(model, CONFIG)
    key = "model.layers.0.mlp.experts.stacked_gate_up_proj.weight_scale"
    for name, changed, message in (
        ("lacking", None, rf"no {STACK}\.weight_scale"),
        ("short", torch.zeros(3, 2, dtype=torch.float16), rf"{key} is F16 \[3, 2\], expected F16 \[192, 2\]"),
        ("damaged", torch.full((192, 2), torch.inf, dtype=torch.float16), rf"{STACK}: 384 scales are negative, infinite"),
    ):
        potq.save(model, tmp_path / name)
        assert key in read_headers([tmp_path / name / "model.safetensors"])
        edit(tmp_path / name, key, changed)
        with pytest.raises(CheckpointError, match=message):
            potq.load(tmp_path / name)


def test_a_folder_whose_config_says_nothing_of_its_packed_experts_is_refused(tmp_path: Path) -> None:
    model = moe("qwen3_moe")
    potq.quantize(model, CONFIG)
    potq.save(model, tmp_path / "out")
    change(tmp_path / "out", features=[])
    with pytest.raises(
        CheckpointError, match=r"holds 14 packed weights, its config\.json asks for 10; unexpected: .*stacked_"
    ):
        potq.load(tmp_path / "out")
