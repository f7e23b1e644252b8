"""Folders for compressed-tensors: every weight equal, by its own reader where it is installed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import potq
from potq.config import PoTConfig
from potq.errors import CheckpointError, ExportError
from potq.export.compressed_tensors import export_compressed_tensors
from potq.kernels import set_activations
from potq.nn.packed_model import packed_modules
from potq.numerics.scheme import QuantScheme

from .models import tiny

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1 = torch.cat([E2M1, -E2M1])
SCHEMES = [
    QuantScheme("mxfp4"),
    QuantScheme("mxpot"),
    QuantScheme("mxpot", group_size="row"),
    QuantScheme("pot3", scale_dtype="e8m0"),
    QuantScheme("pot2", scale_dtype="e8m0"),
    QuantScheme("int3", scale_dtype="e8m0"),
]
INTEGERS = [
    QuantScheme("pot3", group_size=32),
    QuantScheme("pot2", group_size="row"),
    QuantScheme("pot2z", group_size=32),
    QuantScheme("int2", group_size=32),
    QuantScheme("pot4", group_size=32),
    QuantScheme("pot3nz", group_size=32),
    QuantScheme("pot3s", group_size=32),
]


def packed(name: str = "llama", **config: Any) -> Any:
    model = tiny(name)
    potq.quantize(model, PoTConfig(**({"scheme": QuantScheme("mxpot")} | config)))
    set_activations(model, "float")
    return model


def decoded(state: dict[str, Tensor], name: str) -> Tensor:
    """A weight by the format's definition."""
    if f"{name}.weight" in state:
        return state[f"{name}.weight"].float()
    codes = state[f"{name}.weight_packed"].int()
    values = E2M1[torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)]
    scale = 2.0 ** (state[f"{name}.weight_scale"].float() - 127)
    return values * scale.repeat_interleave(32, dim=1)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-biased"])
def test_every_weight_is_equal(
    name: str, scheme: QuantScheme, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = packed(name, scheme=scheme, ignore=["layers.0.mlp.up_proj"])
    report = export_compressed_tensors(model, tmp_path / "out", byte_tokenizer)
    state = load_file(tmp_path / "out" / "model.safetensors")
    for module_name, module in packed_modules(model).items():
        if module.tied_to is None:
            assert torch.equal(decoded(state, module_name), module.quantized.dequantize()), module_name
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["model.layers.0.mlp.up_proj", "lm_head"]
    assert torch.equal(state["model.layers.0.mlp.up_proj.weight"], model.model.layers[0].mlp.up_proj.weight)
    types = {tensor.module: (tensor.type, tensor.bits_per_weight) for tensor in report.tensors}
    assert types["model.layers.1.mlp.up_proj.weight"] == ("mxfp4-pack-quantized", 4.25)
    assert types["model.embed_tokens.weight"] == ("float32", 32)
    assert len(report.notes) == 1 + ("lm_head.weight" in types)


def integers(state: dict[str, Tensor], name: str) -> Tensor:
    """A weight of packed integers by the format's definition."""
    rows, columns = state[f"{name}.weight_shape"].tolist()
    packed, scale = state[f"{name}.weight_packed"].long(), state[f"{name}.weight_scale"].float()
    bits = packed.shape[1] * 32 // columns
    codes = (packed[:, :, None] >> bits * torch.arange(32 // bits)) & (1 << bits) - 1
    return (codes.view(rows, columns) - (1 << bits - 1)) * scale.repeat_interleave(columns // scale.shape[1], dim=1)


@pytest.mark.parametrize("scheme", INTEGERS, ids=lambda scheme: scheme.name)
@pytest.mark.usefixtures("reference_backend")
def test_powers_of_two_as_integers(
    scheme: QuantScheme, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, tokens: Tensor
) -> None:
    model, path = packed(scheme=scheme), tmp_path / "out"
    wide = scheme.name.startswith(("pot4", "pot3nz", "pot3s"))
    if wide:
        with pytest.raises(ExportError, match=r"exactly only as int8/32, 8\.5 bits per weight: pass --allow-8bit"):
            export_compressed_tensors(model, path, byte_tokenizer)
    report = export_compressed_tensors(model, path, byte_tokenizer, allow_8bit=wide)
    state = load_file(path / "model.safetensors")
    for name, module in packed_modules(model).items():
        if f"{name}.weight_packed" in state:
            assert torch.equal(integers(state, name), module.quantized.dequantize()), name
    types = {tensor.type for tensor in report.tensors if not tensor.note}
    assert {kind.partition("/")[0] for kind in types} == {"int8" if wide else "int4"}
    pytest.importorskip("compressed_tensors")
    potq.save(model, tmp_path / "ours")
    ours = potq.load(tmp_path / "ours", dtype="float16")
    set_activations(ours, "float")
    stock = AutoModelForCausalLM.from_pretrained(path)
    assert stock.dtype == torch.float16
    with torch.no_grad():  # unpacked in the first pass
        assert torch.equal(stock(tokens).logits, ours(tokens).logits)
    up = stock.model.layers[1].mlp.up_proj.weight
    assert torch.equal(up.float(), model.model.layers[1].mlp.up_proj.quantized.dequantize())


@pytest.mark.usefixtures("reference_backend")
def test_several_schemes_in_one_model(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, tokens: Tensor) -> None:
    small, wide = QuantScheme("pot3", group_size=32), QuantScheme("pot4", group_size=32)
    model, path = packed(scheme=small, targets={"down_proj": wide}), tmp_path / "out"
    export_compressed_tensors(model, path, byte_tokenizer, allow_8bit=True)
    groups = json.loads((path / "config.json").read_text())["quantization_config"]["config_groups"]
    assert {group["weights"]["num_bits"]: len(group["targets"]) for group in groups.values()} == {4: 12, 8: 2}
    pytest.importorskip("compressed_tensors")
    stock = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        stock(tokens)
    for name, module in packed_modules(model).items():
        if "layers" in name:
            assert torch.equal(stock.get_submodule(name).weight.float(), module.quantized.dequantize()), name
    mixed = packed(scheme=small, targets={"down_proj": QuantScheme("mxpot")})
    with pytest.raises(ExportError, match="some linears are MXFP4, which is unpacked to bfloat16, some integers"):
        export_compressed_tensors(mixed, tmp_path / "mixed", byte_tokenizer)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-biased", "mistral", "qwen2", "qwen3-tied"])
@pytest.mark.usefixtures("reference_backend")
def test_stock_transformers_gives_equal_logits(
    name: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, tokens: Tensor
) -> None:
    pytest.importorskip("compressed_tensors")
    model = packed(name)
    export_compressed_tensors(model, tmp_path / "out", byte_tokenizer)
    potq.save(model, tmp_path / "ours")
    ours = potq.load(tmp_path / "ours", dtype="bfloat16")
    set_activations(ours, "float")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert stock.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(stock(tokens).logits, ours(tokens).logits)
    assert torch.equal(stock.model.layers[1].mlp.up_proj.weight, ours.model.layers[1].mlp.up_proj.weight)


def test_a_head_that_fits_is_packed(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = packed(embedding=QuantScheme("mxpot"))
    export_compressed_tensors(model, tmp_path / "out", byte_tokenizer)
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight_packed" in state
    assert torch.equal(decoded(state, "lm_head"), model.lm_head.quantized.dequantize())


def test_refusals(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "out"
    with pytest.raises(ExportError, match="no type that holds int3-g64 exactly; the nearest scheme that it holds is pot3"):
        export_compressed_tensors(packed(scheme=QuantScheme("int3")), path, byte_tokenizer)
    with pytest.raises(ExportError, match=r"is a Conv1D; compressed-tensors only knows nn.Linear"):
        export_compressed_tensors(packed("gpt2"), path, byte_tokenizer)
    with pytest.raises(ExportError, match="no linear that potq quantized"):
        export_compressed_tensors(tiny("llama"), path, byte_tokenizer)
    model = packed()
    model.model.layers[0].mlp.up_proj.weight_scale[3] = 0
    with pytest.raises(ExportError, match=r"up_proj does not fit mxfp4-pack-quantized: a scale is beyond the range"):
        export_compressed_tensors(model, path, byte_tokenizer)
    assert list(tmp_path.iterdir()) == []
    path.mkdir()
    (path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="--force"):
        export_compressed_tensors(packed(), path, byte_tokenizer)
    export_compressed_tensors(packed(), path, byte_tokenizer, force=True)
    assert (path / "model.safetensors").exists()


def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "out", packed()
    export_compressed_tensors(model, path, byte_tokenizer)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "total used free")(10**9, 10**9, 1000))
        with pytest.raises(CheckpointError, match="no room for"):
            export_compressed_tensors(model, path, byte_tokenizer, force=True)
    for where, method in ((type(byte_tokenizer), "save_pretrained"), (Path, "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(where, method, full)
            with pytest.raises(CheckpointError, match="no room for"):
                export_compressed_tensors(model, path, byte_tokenizer, force=True)
    assert [found.name for found in tmp_path.iterdir()] == ["out"]
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_files_in_the_way(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a model folder"):
        export_compressed_tensors(packed(), tmp_path / "mine", byte_tokenizer, force=True)
    with pytest.raises(CheckpointError, match="is a file"):
        export_compressed_tensors(packed(), tmp_path / "mine" / "notes", byte_tokenizer, force=True)


@pytest.mark.slow
@pytest.mark.usefixtures("reference_backend", "one_thread")
def test_a_process_without_potq(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, tokens: Tensor) -> None:
    pytest.importorskip("compressed_tensors")
    model = packed("qwen2-tied")
    export_compressed_tensors(model, tmp_path / "out", byte_tokenizer)
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "torch.save(model(torch.load(sys.argv[2])).logits.detach(), sys.argv[3])\n"
        "assert 'potq' not in sys.modules"
    )
    torch.save(tokens, tmp_path / "ids")
    words = [sys.executable, "-c", script, *(str(tmp_path / name) for name in ("out", "ids", "logits"))]
    subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    potq.save(model, tmp_path / "ours")
    ours = potq.load(tmp_path / "ours", dtype="bfloat16")
    set_activations(ours, "float")
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits"), ours(tokens).logits)
