"""GGUF files: read whole, with everything that their metadata says of the computation, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from torch import nn

import potq
from potq.checkpoint.gguf import file as gguf_files
from potq.checkpoint.loading import rounded_types
from potq.checkpoint.source import Source, resolve
from potq.errors import CheckpointError, ModelError

Arrays = Mapping[str, Any]


def write_gguf(
    model: Any,
    tokenizer: Any,
    file: Path,
    *,
    family: str = "llama",
    without: Sequence[str] = (),
    metadata: Mapping[str, Any] = {},
    tensors: Arrays = {},  # noqa: B006
    parts: int = 0,
) -> None:
    """A float32 GGUF file of ``model``, as llama.cpp's converter lays it out.

    Args:
        without: transformers' names of tensors that are left out.
        metadata: further keys of the family; a value of None takes one away.
        tensors: further ones.
        parts: tensors in a part of a split file; 0 is a whole one.
    """
    writer = gguf.GGUFWriter(file, family, split_max_tensors=parts)
    for key, value in (_metadata(model.config) | metadata).items():
        _add(writer, f"{family}.{key}", value)
    _add_vocabulary(writer, tokenizer)
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    tied = model.config.tie_word_embeddings
    for key, tensor in model.state_dict().items():
        if (key == "lm_head.weight" and tied) or key in without:
            continue
        array = tensor.numpy() + (key.endswith("norm.weight") and family.startswith("gemma"))
        count = next((count for name, count in heads.items() if name in key), None)
        if count and family == "llama":  # rotary halves interleaved
            array = array.reshape(count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(array, np.float32))
    for name, array in tensors.items():
        writer.add_tensor(name, np.asarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _metadata(config: Any) -> dict[str, Any]:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.dimension_count": width,
        "vocab_size": config.vocab_size,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(inner["vocab"], key=inner["vocab"].get))
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(inner["vocab"]) - 1))
    writer.add_token_merges([" ".join(merge) for merge in inner["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


@pytest.fixture
def gguf_file(tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "gguf").mkdir()
    write_gguf(tiny_model, potq.load_tokenizer(tiny_folder), tmp_path / "gguf" / "tiny.gguf")
    return tmp_path / "gguf" / "tiny.gguf"


def test_a_gguf_file(gguf_file: Path, tiny_model: Any, tiny_folder: Path, tokens: torch.Tensor, tmp_path: Path) -> None:
    model = potq.load(gguf_file)
    assert torch.equal(model(tokens).logits, tiny_model(tokens).logits)
    assert potq.load(gguf_file, dtype="bfloat16").dtype == torch.bfloat16
    assert rounded_types(gguf_file) == rounded_types(tiny_folder) == []
    tokenizer = potq.load_tokenizer(gguf_file)
    text = "the cat é"
    assert tokenizer(text)["input_ids"] == potq.load_tokenizer(tiny_folder)(text)["input_ids"]
    packed = potq.load(gguf_file, potq.PoTConfig("pot4"))
    potq.quantize(tiny_model, potq.PoTConfig("pot4"))
    assert torch.equal(packed(tokens).logits, tiny_model(tokens).logits)
    potq.save(packed, tmp_path / "out", tokenizer)
    assert torch.equal(potq.load(tmp_path / "out")(tokens).logits, packed(tokens).logits)
    assert potq.load_tokenizer(tmp_path / "out")(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_header_is_parsed_once_and_long_arrays_are_stepped_over(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_files, "_LONG", 16)
    gguf_files._opened.cache_clear()
    parsed: list[str] = []
    real = gguf.GGUFReader._get_field_parts

    def counted(self: Any, *arguments: Any) -> Any:
        parsed.append("value")
        return real(self, *arguments)

    monkeypatch.setattr(gguf.GGUFReader, "_get_field_parts", counted)
    rounded_types(gguf_file)
    potq.load(gguf_file)
    assert len(parsed) < 30  # a header once; the vocabulary alone has 260 tokens
    assert len(potq.load_tokenizer(gguf_file)("the cat")["input_ids"]) > 2


def test_the_table_of_tensor_names_is_made_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    real = gguf.get_tensor_name_map

    def counted(*arguments: Any) -> Any:
        made.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(gguf, "get_tensor_name_map", counted)
    potq.load(gguf_file)
    assert len(made) == len(set(made)) == 1
    assert gguf.get_tensor_name_map is counted


def test_a_file_that_was_written_anew_is_parsed_anew(gguf_file: Path, tiny_folder: Path, tokens: torch.Tensor) -> None:
    before = potq.load(gguf_file)(tokens).logits
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_folder)
    nn.init.normal_(model.model.norm.weight)
    gguf_file.unlink()
    write_gguf(model, potq.load_tokenizer(tiny_folder), gguf_file)
    assert not torch.equal(potq.load(gguf_file)(tokens).logits, before)


# ---- incomplete


@pytest.mark.parametrize("keep", [0, 10, 1000, -5000])
def test_a_truncated_gguf_file(gguf_file: Path, keep: int) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf cannot be loaded"):
        potq.load(gguf_file)


@pytest.mark.parametrize("missing", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_a_gguf_file_that_lacks_a_tensor(missing: str, tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """transformers leaves its weight random, and says so in a warning."""
    write_gguf(tiny_model, potq.load_tokenizer(tiny_folder), tmp_path / "some.gguf", without=[missing])
    with pytest.raises(CheckpointError, match=rf"some\.gguf lacks (.*, )?{missing}(, .*)?; it is incomplete, copy it again"):
        potq.load(tmp_path / "some.gguf")
    with pytest.raises(CheckpointError, match=missing):
        potq.load(tmp_path / "some.gguf", potq.PoTConfig("pot4"))


@pytest.fixture
def split_files(tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> list[Path]:
    write_gguf(tiny_model, potq.load_tokenizer(tiny_folder), tmp_path / "whole.gguf", parts=8)
    return sorted(tmp_path.glob("whole-*.gguf"))


@pytest.mark.parametrize("given", [0, 1, -1])
def test_every_part_of_a_split_file_gives_the_whole(
    given: int, split_files: list[Path], tiny_model: Any, tiny_folder: Path, tokens: torch.Tensor
) -> None:
    assert len(split_files) == 3
    part = split_files[given]
    assert resolve(part) == Source(str(part.parent), gguf_file=split_files[0].name, folder=part.parent)
    assert torch.equal(potq.load(part)(tokens).logits, tiny_model(tokens).logits)
    assert potq.load_tokenizer(part)("the cat")["input_ids"] == potq.load_tokenizer(tiny_folder)("the cat")["input_ids"]
    assert rounded_types(part) == []


def test_no_token_is_invented(gguf_file: Path, tmp_path: Path) -> None:
    """transformers added one that the model has no row for; a text that holds its name ended in a traceback."""
    tokenizer = potq.load_tokenizer(gguf_file)
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, potq.load_tokenizer(tmp_path / "saved")):
        assert len(each) == 260
        assert max(each("a<|endoftext|>b")["input_ids"]) < 260
        assert each.decode(each("a<|endoftext|>b")["input_ids"]) == "a<|endoftext|>b"
        assert each.eos_token == "<|end|>"


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_split_file_that_lacks_a_part(lost: int, split_files: list[Path]) -> None:
    split_files[lost].unlink()
    given = split_files[0 if lost else 1]
    message = rf"{given.name} is a part of a split GGUF file of 3; {split_files[lost].name} must lie beside it"
    for read in (potq.load, potq.load_tokenizer, rounded_types):
        with pytest.raises(CheckpointError, match=message):
            read(given)


def test_parts_of_two_files(split_files: list[Path], tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_gguf(tiny_model, potq.load_tokenizer(tiny_folder), tmp_path / "other" / "whole.gguf", parts=9)
    sorted((tmp_path / "other").glob("*.gguf"))[1].rename(split_files[1])
    with pytest.raises(CheckpointError, match=r"all parts hold 21 tensors, its header says 20; copy the parts again"):
        potq.load(split_files[0])


def test_a_gguf_file_without_model(gguf_file: Path) -> None:
    gguf_file.write_bytes(b"not GGUF at all" * 100)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf cannot be loaded"):
        potq.load(gguf_file)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf cannot be loaded"):
        rounded_types(gguf_file)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf has no tokenizer"):
        potq.load_tokenizer(gguf_file)


# ---- metadata that changes the computation

SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
SAID: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "yarn": (
        "llama",
        "Llama",
        {"rope_parameters": YARN},
        {
            "rope.freq_base": 500.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
    ),
    "yarn by the context": (
        "qwen2",
        "Qwen2",
        {"rope_parameters": YARN | {"original_max_position_embeddings": 128}},
        {"rope.freq_base": 500.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
    ),
    "linear": ("llama", "Llama", {"rope_parameters": LINEAR}, {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}),
    "linear, the old word": ("llama", "Llama", {"rope_parameters": LINEAR}, {"rope.scale_linear": 3.0}),
    "biases": ("llama", "Llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "wide heads": ("qwen3", "Qwen3", {"head_dim": 32}, {}),
    "all heads": ("llama", "Llama", {"num_key_value_heads": 4}, {"attention.head_count_kv": None}),
    "soft caps": (
        "gemma2",
        "Gemma2",
        {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "attention.sliding_window": 16},
    ),
    "windows": (
        "gemma3",
        "Gemma3Text",
        {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {"attention.sliding_window": 16, "attention.sliding_window_pattern": 2, "rope.freq_base": 1e6},
    ),
    "windows layer by layer": (
        "gemma3",
        "Gemma3Text",
        {**GEMMA, "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
        {"attention.sliding_window": 16, "attention.sliding_window_pattern": [False, False, True], "rope.freq_base": 1e6},
    ),
    "linear and local": (
        "gemma3",
        "Gemma3Text",
        {
            **GEMMA,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 2e4, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        {
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": 2,
            "rope.freq_base": 2e4,
            "rope.freq_base_swa": 500.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    "a base that is not the default": (
        "starcoder2",
        "Starcoder2",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope.freq_base": 500.0, "attention.layer_norm_epsilon": 1e-5},
    ),
    "a part of the head": (
        "stablelm",
        "StableLm",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        {"rope.freq_base": 500.0, "rope.dimension_count": 8, "attention.layer_norm_epsilon": 1e-5},
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_what_the_metadata_says_is_computed(name: str, byte_tokenizer: Any, tmp_path: Path) -> None:
    family, kind, settings, metadata = SAID[name]
    model = _random(kind, SIZES | settings)
    write_gguf(model, byte_tokenizer, tmp_path / "said.gguf", family=family, metadata=metadata)
    ids = torch.arange(1, 100)[None]
    loaded = potq.load(tmp_path / "said.gguf")
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=2e-5)
    assert loaded.config.to_dict()["max_position_embeddings"] == 128


def _random(kind: str, settings: dict[str, Any]) -> Any:
    """A model whose outputs depend on everything."""
    torch.manual_seed(3)
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**settings)
    )
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, float("norm" in name and "weight" in name and "Gemma" not in kind), 0.15)
    return model.eval().requires_grad_(False)


REFUSED: dict[str, tuple[Mapping[str, Any], Callable[[int], Arrays], str]] = {
    "longrope": (
        {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0},
        lambda half: {},
        r"rope\.scaling\.type = long",
    ),
    "a scale": ({"logit_scale": 2.0}, lambda half: {}, r"llama\.logit_scale = 2\.0, which is not supported"),
    "a window": ({"attention.sliding_window": 16}, lambda half: {}, r"llama\.attention\.sliding_window = 16"),
    "yarn's attention": (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 0.7},
        lambda half: {},
        r"rope\.scaling\.attn_factor = 0\.69",
    ),
    "a part of the head": ({"rope.dimension_count": 8}, lambda half: {}, r"llama\.rope\.dimension_count = 8"),
    "other values' width": ({"attention.value_length": 8}, lambda half: {}, r"llama\.attention\.value_length = 8"),
    "what nobody knows": ({"attention.novelty": "much"}, lambda half: {}, r"llama\.attention\.novelty = much"),
    "encoders": ({"attention.causal": False}, lambda half: {}, r"llama\.attention\.causal = False"),
    "odd frequencies": ({}, lambda half: {"rope_freqs.weight": np.arange(half) + 1}, r"rope_freqs\.weight follows no rule"),
    "a tensor more": ({}, lambda half: {"blk.0.attn_sinks.weight": np.ones(4)}, r"holds blk\.0\.attn_sinks\.weight, which"),
    "a tensor of another family": (
        {},
        lambda half: {"blk.0.attn_q_norm.weight": np.ones(16)},
        r"holds blk\.0\.attn_q_norm\.weight, which a model of the family llama does not use here; take the model's",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name: str, tiny_model: Any, byte_tokenizer: Any, tmp_path: Path) -> None:
    metadata, tensors, message = REFUSED[name]
    half = tiny_model.config.head_dim // 2
    write_gguf(tiny_model, byte_tokenizer, tmp_path / "odd.gguf", metadata=metadata, tensors=tensors(half))
    with pytest.raises(ModelError, match=message):
        potq.load(tmp_path / "odd.gguf")
    with pytest.raises(ModelError, match=message):
        potq.load(tmp_path / "odd.gguf", potq.PoTConfig("pot4"))


def test_values_that_change_nothing(tiny_model: Any, byte_tokenizer: Any, tokens: torch.Tensor, tmp_path: Path) -> None:
    metadata = {
        "attention.causal": True,
        "attention.clamp_kqv": 0.0,
        "rope.scaling.type": "none",
        "rope.scaling.finetuned": True,
    }
    ones = {"rope_freqs.weight": np.ones(tiny_model.config.head_dim // 2)}
    write_gguf(tiny_model, byte_tokenizer, tmp_path / "same.gguf", metadata=metadata, tensors=ones)
    assert torch.equal(potq.load(tmp_path / "same.gguf")(tokens).logits, tiny_model(tokens).logits)
