"""Whole GGUF files: every weight equal, nothing half-written."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import potq
from potq.config import PoTConfig
from potq.errors import CheckpointError, ExportError
from potq.export.gguf.families import interleaved
from potq.export.gguf.tensors import GgufTensor
from potq.export.gguf.write import export_gguf
from potq.export.targets import GGUF
from potq.kernels import set_activations
from potq.numerics.scheme import PRESETS, QuantScheme

from .models import MODELS, VOCABULARY, tiny

HELD = [name for name, scheme in PRESETS.items() if GGUF.form(scheme) is not None]


def stored(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file by ``gguf``'s own reader and dequantize, float32."""
    return {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in gguf.GGUFReader(path).tensors
    }


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def fields(path: Path) -> dict[str, Any]:
    return {field.name: field.contents() for field in gguf.GGUFReader(path).fields.values()}


def expected(model: Any) -> dict[str, Tensor]:
    """What the file must hold: names and rows spelled out here, not taken from the code under test."""
    found = {}
    for name, values in state(model).items():
        short = name.removeprefix("model.").removeprefix("transformer.")
        for ours, theirs in _NAMES.items():
            short = short.replace(ours, theirs)
        heads = {"attn_q": 4, "attn_k": 2}.get(short.rpartition(".")[0].rpartition(".")[2])
        found[short] = (
            values
            if heads is None or model.config.model_type.startswith("qwen")
            else values.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        )
    return found


_NAMES = {
    "layers.": "blk.",
    "h.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "ln_f": "output_norm",
    "wte": "token_embd",
    "wpe": "position_embd",
}


def state(model: Any) -> dict[str, Tensor]:
    """Every weight once, linears as (out, in), float32."""
    found = {}
    for name, module in model.named_modules():
        if getattr(module, "tied_to", None) is not None or (name == "lm_head" and model.config.tie_word_embeddings):
            continue
        for key in ("weight", "bias"):
            values = getattr(module, key, None)
            if isinstance(values, Tensor):
                turned = key == "weight" and type(module).__name__ == "Conv1D"
                found["output_norm.weight" if name == "model.norm" else f"{name}.{key}"] = values.t() if turned else values
    return found


def check(model: Any, path: Path) -> None:
    wanted, found = expected(model), stored(path)
    found.pop("rope_freqs.weight", None)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert torch.equal(found[name], values.float()), name


@pytest.mark.parametrize("preset", HELD)
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_every_preset_is_exact(name: str, preset: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = tiny(name), tmp_path / "out.gguf"
    potq.quantize(model, PoTConfig(preset, embedding=preset))
    report = export_gguf(model, path, byte_tokenizer, allow_8bit=True)
    check(model, path)
    form = GGUF.form(PRESETS[preset])
    assert form is not None
    assert report.notes == []
    assert report.quantized_bits_per_weight == form.bits_per_weight
    assert {tensor.type for tensor in report.tensors if tensor.scheme} == {form.name}
    assert set(types(path).values()) == {form.name, "F32"}
    assert report.nbytes == path.stat().st_size


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_exact(name: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = tiny(name), tmp_path / "out.gguf"
    targets = {r"^.*\.0\..*": "pot3", "down_proj|mlp.c_proj": QuantScheme("pot2z", group_size="row")}
    potq.quantize(model, PoTConfig("mxpot", targets=targets, ignore=["v_proj|c_fc"]))
    export_gguf(model, path, byte_tokenizer)
    check(model, path)
    assert ("output.weight" in stored(path)) == (not model.config.tie_word_embeddings)
    found = set(types(path).values())
    assert found >= {"MXFP4", "Q4_0", "Q8_0", "F32"}


def test_ternary_rows_of_256(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = tiny("llama", hidden_size=256), tmp_path / "out.gguf"
    potq.quantize(model, PoTConfig("pot2z", group_size="row"))
    export_gguf(model, path, byte_tokenizer)
    check(model, path)
    found = types(path)
    assert found["blk.0.attn_q.weight"] == "TQ2_0"
    assert found["blk.0.ffn_down.weight"] == "Q4_0"  # rows of 160


def test_float_types(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = tiny("llama"), tmp_path / "out.gguf"
    layer = model.model.layers[0]
    layer.self_attn.v_proj.weight.copy_(layer.self_attn.v_proj.weight.half())
    layer.mlp.up_proj.weight.copy_((layer.mlp.up_proj.weight * 2.0**-20).bfloat16())
    potq.quantize(model, PoTConfig("pot3", ignore=["v_proj", "up_proj"], embedding=None))
    export_gguf(model, path, byte_tokenizer)
    check(model, path)
    found = types(path)
    assert [found[f"blk.0.{name}.weight"] for name in ("attn_v", "ffn_up", "attn_norm")] == ["F16", "BF16", "F32"]
    assert [found[name] for name in ("blk.1.attn_v.weight", "token_embd.weight")] == ["F32", "F32"]


def test_scales_out_of_range_make_floats(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = tiny("llama"), tmp_path / "out.gguf"
    model.model.embed_tokens.weight[5] *= 1e-3
    model.model.layers[1].mlp.up_proj.weight *= 1e-4
    potq.quantize(model, PoTConfig("pot3"))
    report = export_gguf(model, path, byte_tokenizer)
    check(model, path)
    assert report.notes == [
        "model.embed_tokens.weight as F32: a scale is beyond the range of Q8_0's",
        "model.layers.1.mlp.up_proj.weight as F32: a scale is beyond the range of Q4_0's",
    ]


def test_rows_that_are_no_blocks_make_floats(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = tiny("llama", intermediate_size=100), tmp_path / "out.gguf"
    potq.quantize(model, PoTConfig("pot3"))
    report = export_gguf(model, path, byte_tokenizer)
    check(model, path)
    why = "rows of 100 weights do not divide into blocks of 32"
    assert report.notes == [f"model.layers.{layer}.mlp.down_proj.weight as F16: {why}" for layer in (0, 1)]


def test_metadata_of_llama(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = tiny("llama-linear-rope"), tmp_path / "out.gguf"
    potq.quantize(model, PoTConfig("mxpot"))
    export_gguf(model, path, byte_tokenizer, name="small")
    found = fields(path)
    assert {key: found[key] for key in found if key.startswith(("general.", "llama."))} == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "small",
        "general.file_type": gguf.LlamaFileType.MOSTLY_MXFP4_MOE,
        "general.quantization_version": 2,
        "llama.vocab_size": VOCABULARY,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 160,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 1e4,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 3.0,
    }


def test_a_window_bounds_the_context(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = tiny("mistral"), tmp_path / "out.gguf"
    potq.quantize(model, PoTConfig("pot3"))
    export_gguf(model, path, byte_tokenizer)
    assert fields(path)["llama.context_length"] == 96


def test_llama3_frequencies(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = tiny("llama-llama3-rope"), tmp_path / "out.gguf"
    potq.quantize(model, PoTConfig("pot3"))
    export_gguf(model, path, byte_tokenizer)
    plain = 500.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    torch.testing.assert_close(plain / stored(path)["rope_freqs.weight"], model.model.rotary_emb.inv_freq.double())


def test_interleaved_rows() -> None:
    assert interleaved(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


# ---- refusals


def packed(name: str = "llama", config: PoTConfig | None = None) -> Any:
    model = tiny(name)
    potq.quantize(model, config or PoTConfig("pot3"))
    return model


def test_schemes_are_refused_before_the_work(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ExportError, match=r"pot4-g64 exactly only as Q8_0.*--allow-8bit.*mxpot"):
        export_gguf(packed(config=PoTConfig("pot4")), tmp_path / "out.gguf", byte_tokenizer)
    with pytest.raises(ExportError, match="no type that holds pot3-g16"):
        export_gguf(packed(config=PoTConfig("pot3", group_size=16)), tmp_path / "out.gguf", byte_tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_an_unquantized_model_is_refused(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ExportError, match="not quantized by potq"):
        export_gguf(tiny("llama"), tmp_path / "out.gguf", byte_tokenizer)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "llama",
            {"model_type": "opt"},
            "of type 'opt' cannot be exported to gguf yet, only llama, mistral, qwen2, qwen3, gpt2",
        ),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'silu' or 'swish' only, this one has 'gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope scaling of type 'yarn'"),
        (
            "gpt2",
            {"activation_function": "gelu"},
            "activation_function 'gelu_new' or 'gelu_pytorch_tanh' only, this one has 'gelu'",
        ),
        ("qwen3", {"attention_bias": True}, "attention_bias False only, this one has True"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx False only, this one has True"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    name: str,
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    byte_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = packed(name)
    for key, value in change.items():
        monkeypatch.setattr(type(model.config) if key == "model_type" else model.config, key, value)
    with pytest.raises(ExportError, match=message):
        export_gguf(model, tmp_path / "out.gguf", byte_tokenizer)
    assert list(tmp_path.iterdir()) == []


# ---- the file


def test_an_existing_file_wants_force(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    path, model = tmp_path / "out.gguf", packed()
    path.write_text("mine")
    with pytest.raises(CheckpointError, match=r"out.gguf exists.*--force"):
        export_gguf(model, path, byte_tokenizer)
    assert path.read_text() == "mine"
    export_gguf(model, path, byte_tokenizer, force=True)
    check(model, path)
    assert {found.name for found in tmp_path.iterdir()} == {"out.gguf", "README.md"}


def test_folders_and_files_in_the_way(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a folder; name a file"):
        export_gguf(packed(), tmp_path, byte_tokenizer, force=True)
    with pytest.raises(CheckpointError, match="is a file; choose another output"):
        export_gguf(packed(), tmp_path / "file" / "out.gguf", byte_tokenizer)


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "out.gguf", packed()
    path.write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "total used free")(10**9, 10**9, 1000))
        with pytest.raises(CheckpointError, match="no room for"):
            export_gguf(model, path, byte_tokenizer, force=True)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(CheckpointError, match="no room for"):
        export_gguf(model, path, byte_tokenizer, force=True)
    assert [found.name for found in tmp_path.iterdir()] == ["out.gguf"]
    assert path.read_text() == "mine"


def test_a_file_that_reads_back_otherwise_gets_no_name(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = GgufTensor.data

    def damaged(tensor: GgufTensor) -> Any:
        data = whole(tensor)
        if tensor.name == "blk.1.ffn_up.weight":
            data[3, 5] ^= 16
        return data

    monkeypatch.setattr(GgufTensor, "data", damaged)
    with pytest.raises(ExportError, match=r"blk.1.ffn_up.weight does not read back as model.layers.1.mlp.up_proj.weight"):
        export_gguf(packed(), tmp_path / "out.gguf", byte_tokenizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_can_be_loaded(name: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Settings too: heads, biases, scaled frequencies."""
    model = tiny(name)
    potq.quantize(model, PoTConfig("mxpot", embedding="int8"))
    set_activations(model, "float")
    export_gguf(model, tmp_path / "out.gguf", byte_tokenizer, allow_8bit=True)
    ids = torch.arange(1, 90)[None]
    loaded = potq.load(tmp_path / "out.gguf")
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=5e-5)
