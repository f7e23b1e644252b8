"""A folder that is read in parts gives, byte for byte, what the whole model in memory gives."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import potq
from potq.errors import CheckpointError, ConfigError, ModelError
from potq.nn.parts import parts_of
from potq.nn.properties import is_tied

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 260}
DEEP = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="make check-deep")
CONFIG = potq.PoTConfig("pot4", group_size=32, effort="gptq")


def _llama(**changes: Any) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**(SIZES | {"num_key_value_heads": 2, "tie_word_embeddings": False} | changes)))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "tied": lambda: _llama(tie_word_embeddings=True),
    "conv1d": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_head=4, n_layer=2, n_positions=64)),
    "two kinds of masks": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=8, layer_types=None)
    ),
    "experts merged from many tensors": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, sliding_window=None)
    ),
    "towers": lambda: Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
            vision_config={**SIZES, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
        )
    ),
    "linears outside the blocks": lambda: OPTForCausalLM(
        OPTConfig(
            **(SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 16}), max_position_embeddings=64, do_layer_norm_before=True
        )
    ),
}


def _folder(model: Any, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    model.to(dtype).save_pretrained(path, max_shard_size="20KB")
    return path


def _made(kind: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[kind]()


def _batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(5, 260, (6, 16), generator=generator).split(1))


def _saved(
    source: Path, config: potq.PoTConfig, tmp_path: Path, *, stream: bool, dtype: str = "auto", **options: Any
) -> dict[str, bytes]:
    """Every file of the folder that quantizing ``source`` gives."""
    model = potq.load(source, dtype=dtype, stream=stream)
    potq.quantize(model, config, _batches(), work_folder=options.pop("work", tmp_path / f"work{stream}"), **options)
    potq.save(model, tmp_path / "out", max_shard_size="30KB", force=True)
    return {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}


@pytest.fixture(autouse=True)
def small_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several calls of the blocks, though the text is short."""
    monkeypatch.setattr("potq.ptq.blocks.TOKENS", 32)


@pytest.mark.parametrize(
    ("kind", "effort", "dtype"),
    [
        ("llama", "balanced", torch.float32),
        ("llama", "potptq", torch.bfloat16),
        ("tied", "balanced", torch.bfloat16),
        ("tied", "gptq:weigh_tokens=true", torch.float32),
        ("tied", "potptq", torch.float32),
        pytest.param("llama", "balanced", torch.bfloat16, marks=DEEP),
        pytest.param("llama", "potptq", torch.float32, marks=DEEP),
        pytest.param("tied", "balanced", torch.float32, marks=DEEP),
        pytest.param("tied", "potptq", torch.bfloat16, marks=DEEP),
    ],
)
def test_every_effort_that_streams_gives_the_same_bytes(kind: str, effort: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source, config = _folder(_made(kind), tmp_path / "model", dtype), CONFIG.model_copy(update={"effort": None})
    config = potq.PoTConfig(**{**config.model_dump(), "effort": effort})
    assert _saved(source, config, tmp_path, stream=True) == _saved(source, config, tmp_path, stream=False)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in ("llama", "tied")])
def test_every_kind_of_model_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    source = _folder(_made(kind), tmp_path / "model")
    assert _saved(source, CONFIG, tmp_path, stream=True) == _saved(source, CONFIG, tmp_path, stream=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_dtype_that_is_asked_for_holds_in_every_part(dtype: str, tmp_path: Path) -> None:
    stored = torch.float32 if dtype == "bfloat16" else torch.bfloat16
    source = _folder(_made("llama"), tmp_path / "model", stored)
    found = _saved(source, CONFIG, tmp_path, stream=True, dtype=dtype)
    assert found == _saved(source, CONFIG, tmp_path, stream=False, dtype=dtype)


def test_modules_that_stay_in_full_precision_are_written_too(tmp_path: Path) -> None:
    source = _folder(_made("tied"), tmp_path / "model")
    config = potq.PoTConfig("pot4", group_size=32, effort="gptq", ignore=["lm_head", r"layers\.1\.mlp\..*"])
    found = _saved(source, config, tmp_path, stream=True)
    assert found == _saved(source, config, tmp_path, stream=False)
    stored = {key for file in (tmp_path / "out").glob("*.safetensors") for key in load_file(file)}
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"} <= stored


@pytest.mark.parametrize("alike", [True, False])
def test_a_head_that_is_stored_beside_the_embedding_it_is_tied_to(alike: bool, tmp_path: Path) -> None:
    source = _folder(_made("tied"), tmp_path / "model")
    with safe_open(next(source.glob("model-00001-*")), framework="pt") as file:
        embedding = file.get_tensor("model.embed_tokens.weight")
    shard = sorted(source.glob("*.safetensors"))[-1]
    save_file(load_file(shard) | {"lm_head.weight": embedding.clone() if alike else embedding + 1}, shard, {"format": "pt"})
    index = source / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"weight_map": {', f'"weight_map": {{"lm_head.weight": "{shard.name}",'))
    found = _saved(source, CONFIG, tmp_path, stream=True)
    assert found == _saved(source, CONFIG, tmp_path, stream=False)
    assert is_tied(potq.load(tmp_path / "out")) == alike


def test_the_model_in_parts_computes_what_the_whole_computes(tmp_path: Path) -> None:
    source = _folder(_made("llama"), tmp_path / "model")
    whole, parts = potq.load(source), potq.load(source, stream=True)
    assert torch.equal(whole(_batches()[0]).logits, parts(_batches()[0]).logits)


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    model = potq.load(_folder(_made("llama"), tmp_path / "model"), stream=True)
    seen: list[set[str]] = []

    def look(done: int, total: int, name: str) -> None:
        seen.append({key.split(".")[2] for key, p in model.named_parameters() if ".layers." in key and not p.is_meta})

    potq.quantize(model, CONFIG, _batches(), work_folder=tmp_path / "work", progress=look)
    assert sorted(map(tuple, {frozenset(each) for each in seen})) == [(), ("0",), ("1",), ("2",)]
    assert parts_of(model) is None
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("first", [True, False])
def test_a_killed_run_goes_on_streamed_however_it_began(first: bool, tmp_path: Path) -> None:
    source = _folder(_made("llama"), tmp_path / "model")
    expected = _saved(source, CONFIG, tmp_path, stream=False)

    def kill(done: int, total: int, name: str) -> None:
        if name == "model.layers.1.mlp.down_proj":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _saved(source, CONFIG, tmp_path, stream=first, work=tmp_path / "killed", progress=kill)
    done: list[str] = []
    found = _saved(
        source, CONFIG, tmp_path, stream=True, work=tmp_path / "killed", progress=lambda *call: done.append(call[2])
    )
    assert found == expected
    assert not any(name.startswith("model.layers.0") for name in done)
    assert any(name.startswith("model.layers.1") for name in done)


def test_best_is_refined_by_blocks_and_says_so(tmp_path: Path) -> None:
    source = _folder(_made("llama"), tmp_path / "model")
    best = potq.PoTConfig("pot4", group_size=32, effort="best")
    model = potq.load(source, stream=True)
    report = potq.quantize(model, best, _batches(), work_folder=tmp_path / "work")
    assert report.modules[1].algorithm == "gptq+descent+block"
    assert model.config.quantization_config.effort.scope == "block"
    assert report.remarks == ["effort 'best' refines the whole model in memory; streamed, it was refined block by block"]
    assert best.effort is not None
    blocks = potq.PoTConfig(**{**best.model_dump(), "effort": best.effort.model_copy(update={"scope": "block"})})
    whole = potq.load(source)
    potq.quantize(whole, blocks, _batches())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("key", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_a_tensor_that_is_missing_is_found_before_any_work(key: str, tmp_path: Path) -> None:
    source = _folder(_made("llama"), tmp_path / "model")
    shard = next(file for file in source.glob("*.safetensors") if key in load_file(file))
    save_file({name: tensor for name, tensor in load_file(shard).items() if name != key}, shard, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lacks {key}; it is incomplete, copy it again"):
        potq.load(source, stream=True)


def test_a_shard_that_vanishes_meanwhile_is_an_error_that_names_it(tmp_path: Path) -> None:
    source = _folder(_made("llama"), tmp_path / "model")
    model = potq.load(source, stream=True)
    shard = next(file for file in source.glob("*.safetensors") if "model.layers.2.mlp.up_proj.weight" in load_file(file))
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        potq.quantize(model, CONFIG, _batches(), work_folder=tmp_path / "work")


def test_a_tensor_that_vanishes_meanwhile_is_no_random_one(tmp_path: Path) -> None:
    source, key = _folder(_made("llama"), tmp_path / "model"), "model.layers.2.mlp.up_proj.weight"
    model = potq.load(source, stream=True)
    shard = next(file for file in source.glob("*.safetensors") if key in load_file(file))
    save_file({name: tensor.clone() for name, tensor in load_file(shard).items() if name != key}, shard, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks {key}"):
        potq.quantize(model, CONFIG, _batches(), work_folder=tmp_path / "work")


def test_a_weight_that_is_nan_is_named_before_any_block_is_done(tmp_path: Path) -> None:
    made = _made("llama")
    made.model.layers[2].mlp.up_proj.weight.data[3, 5] = torch.nan
    model = potq.load(_folder(made, tmp_path / "model"), stream=True)
    with pytest.raises(ModelError, match=r"layers\.2\.mlp\.up_proj\.weight has 1 NaN"):
        potq.quantize(model, CONFIG, _batches(), work_folder=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_what_is_not_for_models_in_parts(tiny_folder: Path, tmp_path: Path, packed_folder: Path) -> None:
    model = potq.load(tiny_folder, stream=True)
    with pytest.raises(ConfigError, match="needs a work_folder"):
        potq.quantize(model, CONFIG, _batches())
    with pytest.raises(ConfigError, match=r"effort='fast' needs no stream=True: potq\.load"):
        potq.quantize(model, potq.PoTConfig("pot4"), work_folder=tmp_path / "work")
    for wish in (
        lambda: potq.load_calibration("self", model, window=8, windows=1),
        lambda: potq.allocate(model, potq.PoTConfig("pot4"), ["pot3", "pot4"], _batches()),
        lambda: potq.qat.prepare(model, potq.PoTConfig("pot4")),
    ):
        with pytest.raises(ModelError, match="loaded with stream=True"):
            wish()
    with pytest.raises(CheckpointError, match="is quantized already"):
        potq.load(packed_folder, stream=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"config": potq.PoTConfig("pot4")}, "leave stream out"), ({"device": "cpu"}, "leave the device out")],
)
def test_wishes_that_exclude_each_other(options: dict[str, Any], message: str, tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        potq.load(tiny_folder, stream=True, **options)


def test_a_gguf_file_is_read_as_a_whole(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_folder / "config.json", tmp_path / "model.gguf")  # nothing reads it
    with pytest.raises(ConfigError, match="GGUF file, which is read as a whole"):
        potq.load(tmp_path / "model.gguf", stream=True)


def test_a_model_in_parts_is_not_saved_as_it_is(tmp_path: Path) -> None:
    _llama().save_pretrained(tmp_path / "full")
    with pytest.raises(ModelError, match="copy its folder"):
        potq.load(tmp_path / "full", stream=True).save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()
