"""``potq export``."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import gguf
import pytest
import torch

import potq
from cli_helpers import invoke, refused, succeed
from potq.cli.export import Core, Format
from potq.errors import CheckpointError, ConfigError, ExportError, PotqError
from potq.export.targets import TARGETS
from potq.hardware.kernels import COSTS


@pytest.fixture
def mxpot_folder(tiny_folder: Path) -> Path:
    folder = tiny_folder.with_name("small")
    potq.save(potq.load(tiny_folder, potq.PoTConfig("mxpot")), folder, potq.load_tokenizer(tiny_folder))
    return folder


def test_a_file(mxpot_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    out = succeed("export", mxpot_folder, path, "--to", "gguf")
    assert "5.023 bits per weight, 15 quantized at 4.939; 0.1 MB" in out
    assert f"wrote {path}; every weight is equal" in out
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.name"].contents() == "small"
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    expected = potq.load(mxpot_folder).model.layers[1].mlp.up_proj.weight
    assert torch.equal(torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()), expected)


def test_json(packed_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    found = json.loads(succeed("export", packed_folder, path, "--to", "gguf", "--allow-8bit", "--json"))
    assert (found["path"], found["nbytes"], found["quantized_bits_per_weight"]) == (str(path), path.stat().st_size, 8.5)
    head = next(tensor for tensor in found["tensors"] if tensor["name"] == "token_embd.weight")
    assert head == {
        "name": "token_embd.weight",
        "module": "model.embed_tokens.weight",
        "type": "Q8_0",
        "scheme": "int8-g64",
        "weights": 260 * 64,
        "nbytes": 260 * 68,
        "note": "",
    }


def test_list() -> None:
    out = succeed("export", "--list")
    lines = {words[0]: words[1:] for line in out.splitlines() if len(words := line.split()) > 1}
    assert lines["mxpot-g32-e8m0"] == ["MXFP4", "4.25", "mxfp4-pack-quantized", "4.25", "8-bit/32", "9"]
    assert lines["pot3-g64"] == ["Q4_0", "4.5", "int4/64", "4.25", "4-bit/64", "4.5"]
    assert lines["int3-g64"] == ["Q4_0", "4.5", "-", "4-bit/64", "4.5"]  # 3 times a scale is no float16
    assert lines["pot5-g64"] == ["-", "-", "-"]
    found = json.loads(succeed("export", "--list", "--schemes", "pot2z:group_size=row,pot7", "--json"))
    assert found == {
        "pot2z-row": {
            "gguf": {"type": "TQ2_0", "bits_per_weight": 2.0625},
            "compressed-tensors": {"type": "int4/128", "bits_per_weight": 4.125},
            "onnx": {"type": "2-bit/256", "bits_per_weight": 2.125},
        },
        "pot7-g64": {"gguf": None, "compressed-tensors": None, "onnx": None},
    }


def test_a_folder(mxpot_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "out"
    assert f"wrote {path}; every weight is equal" in succeed("export", mxpot_folder, path, "--to", "compressed-tensors")
    config = json.loads((path / "config.json").read_text())
    assert config["quantization_config"]["format"] == "mxfp4-pack-quantized"
    assert (path / "tokenizer.json").exists()
    assert "--force" in refused(CheckpointError, "export", mxpot_folder, path, "--to", "compressed-tensors")


def test_an_onnx_folder(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    packed, path = tmp_path / "packed", tmp_path / "out"
    potq.save(potq.load(tiny_folder, potq.PoTConfig("pot4")), packed, potq.load_tokenizer(tiny_folder))
    assert "--allow-8bit" in refused(ExportError, "export", packed, path, "--to", "onnx")
    out = succeed("export", packed, path, "--to", "onnx", "--allow-8bit")
    assert "15 quantized at 8.600;" in out  # rows of 160 take blocks of 32
    assert f"wrote {path}; every weight is equal" in out
    assert (path / "model.onnx_data").exists()
    words = ["export", packed, tmp_path / "int8", "--to", "onnx", "--allow-8bit", "--activations", "int8"]
    assert "every weight is equal" in succeed(*words)
    assert "accuracy_level" in (tmp_path / "int8" / "README.md").read_text()
    assert (tmp_path / "int8" / "model.onnx_data").read_bytes() == (path / "model.onnx_data").read_bytes()
    assert "--activations is for onnx" in refused(ConfigError, *words[:4], "gguf", *words[5:])
    assert "--force" in refused(CheckpointError, "export", packed, path, "--to", "onnx", "--allow-8bit")


def test_a_reader_that_is_missing_is_named(mxpot_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    words = ["export", mxpot_folder, tmp_path / "out", "--to", "compressed-tensors"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "compressed" in name else find(name, *rest))
    assert "pip install 'potq[compressed-tensors]'" in invoke(*words).stderr
    assert (tmp_path / "out" / "config.json").exists()


def test_every_target_can_be_named() -> None:
    assert {kind.value for kind in Format} == {*TARGETS, "c"}  # whose kernels take schemes, not block types
    assert {core.value for core in Core} == COSTS.keys()


def test_refusals(packed_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    assert "--allow-8bit" in refused(ExportError, "export", packed_folder, path, "--to", "gguf")
    assert "potq quantize" in refused(ExportError, "export", tiny_folder, path, "--to", "gguf")
    assert "give a model, an output and a format" in refused(ConfigError, "export", packed_folder, path)
    assert "takes no model" in refused(ConfigError, "export", packed_folder, "--list")
    assert "--schemes is for --list" in refused(ConfigError, "export", packed_folder, path, "--schemes", "pot3")
    same = refused(CheckpointError, "export", packed_folder, packed_folder, "--to", "onnx", "--force", "--allow-8bit")
    assert "which the new model is made from" in same
    assert not path.exists()
    path.write_text("mine")
    assert "--force" in refused(CheckpointError, "export", packed_folder, path, "--to", "gguf", "--allow-8bit")
    assert path.read_text() == "mine"
    assert invoke("export", packed_folder, path, "--to", "onxx").exit_code == 2


def test_notes_are_on_stderr(tiny_folder: Path, tmp_path: Path) -> None:
    model = potq.load(tiny_folder)
    model.model.layers[0].mlp.up_proj.weight.data.mul_(1e-5)
    potq.quantize(model, potq.PoTConfig("pot3"))
    potq.save(model, tmp_path / "packed", potq.load_tokenizer(tiny_folder))
    result = invoke("export", tmp_path / "packed", tmp_path / "out.gguf", "--to", "gguf", "--json")
    assert "model.layers.0.mlp.up_proj.weight as BF16: a scale is beyond the range of Q4_0's" in result.stderr
    notes = [tensor["note"] for tensor in json.loads(result.stdout)["tensors"]]
    assert sum(map(bool, notes)) == 1


def test_a_gguf_file_is_called_so(mxpot_folder: Path, tmp_path: Path) -> None:
    """By their names alone do engines, and potq itself, know such files."""
    message = refused(CheckpointError, "export", mxpot_folder, tmp_path / "out", "--to", "gguf")
    assert f"{tmp_path / 'out'} does not end in .gguf; write {tmp_path / 'out'}.gguf" in message
    assert not list(tmp_path.glob("out*"))


def test_a_c_program(packed_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out-c"
    result = invoke("export", packed_folder, folder, "--to", "c", "--core", "cortex-m3", "--context", "32", "--ram", "64K")
    assert result.exit_code == 0, result.exception
    assert f"wrote {folder}, " in result.stdout
    assert re.search(
        r"flash [\d,]+ bytes, RAM [\d,]+, stack 1,024; context 32 tokens; kernels for cortex-m3: ", result.stderr
    )
    assert {"model.h", "model.c", "weights.c", "config.h"} <= {file.name for file in folder.iterdir()}
    assert "exists; choose another output folder" in refused(CheckpointError, "export", packed_folder, folder, "--to", "c")
    found = json.loads(succeed("export", packed_folder, folder, "--to", "c", "--strict", "--force", "--json"))
    assert found["strict"]
    assert found["nbytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert not [name for name in found["kernels"] if name.startswith("multiply")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--flash", "9K"), "bytes of flash, and there are 9,216"),
        (("--ram", "1K"), "bytes of RAM and 1,024 of stack, and there are 1,024; pass a shorter context than 128"),
        (("--context", "129"), "invalid context 129; the model has 1 to 128 positions"),
    ],
)
def test_a_c_program_that_does_not_fit(words: tuple[str, str], message: str, packed_folder: Path, tmp_path: Path) -> None:
    assert message in refused(PotqError, "export", packed_folder, tmp_path / "out", "--to", "c", *words)
    assert not (tmp_path / "out").exists()


def test_options_of_a_c_program_are_for_nothing_else(packed_folder: Path, tmp_path: Path) -> None:
    assert "are for c, not for onnx" in refused(
        ConfigError, "export", packed_folder, tmp_path / "o", "--to", "onnx", "--strict"
    )
    assert "not for c" in refused(ConfigError, "export", packed_folder, tmp_path / "o", "--to", "c", "--allow-8bit")
    assert "'5X' is no size" in invoke("export", packed_folder, tmp_path / "o", "--to", "c", "--flash", "5X").stderr


def test_a_folder_of_something_else_is_not_replaced(packed_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").touch()
    message = refused(CheckpointError, "export", packed_folder, tmp_path / "notes", "--to", "c", "--force")
    assert "is not a model folder (it has no model.h) and is never replaced" in message
