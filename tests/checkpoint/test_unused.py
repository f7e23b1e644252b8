"""Tensors of a checkpoint that its model does not use: counted, whichever way it is quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import potq
from potq.checkpoint.folder import read_headers
from potq.checkpoint.unused import hub_headers, unused_tensors

NAMES = ["model.layers.2.mlp.up_proj.weight", "mtp.fc.weight", "vision_tower.proj.weight"]
LINE = f"3 tensors of the checkpoint are not used, 0.0 MB: model.layers.*.mlp.up_proj.weight, {NAMES[1]}, {NAMES[2]}"


@pytest.fixture
def folder(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a third layer's weight, a head that transformers is told not to mention, and a vision tower."""
    file = tiny_folder / "model.safetensors"
    tensors = load_file(file)
    tensors |= {NAMES[0]: torch.zeros(8, 4), NAMES[1]: torch.zeros(3, 2, dtype=torch.bfloat16), NAMES[2]: torch.zeros(5)}
    save_file(tensors, file, metadata={"format": "pt"})
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"^mtp.*"])
    return tiny_folder


def check(report: potq.QuantReport) -> None:
    assert [(tensor.name, tensor.nbytes) for tensor in report.unused] == list(zip(NAMES, (128, 12, 20), strict=True))
    assert report.notes == [LINE]


def test_streamed(folder: Path) -> None:
    check(potq.load(folder, potq.PoTConfig("pot4")).quant_report)


@pytest.mark.parametrize("effort", ["fast", "gptq"])
def test_loaded_then_quantized(folder: Path, tokens: torch.Tensor, effort: str, tmp_path: Path) -> None:
    model = potq.load(folder)
    report = potq.quantize(model, potq.PoTConfig("pot4", effort=effort), [tokens])
    check(report)
    potq.save(model, tmp_path / "out")
    check(potq.load(tmp_path / "out").quant_report)
    assert [tensor["name"] for tensor in json.loads(json.dumps(report.to_dict()))["unused"]] == NAMES


def test_trained(folder: Path) -> None:
    model = potq.load(folder)
    potq.qat.prepare(model, potq.PoTConfig("pot2"))
    check(potq.qat.convert(model))


def test_nothing_is_unused(tiny_folder: Path, packed_model: Any) -> None:
    assert potq.load(tiny_folder, potq.PoTConfig("pot4")).quant_report.unused == []
    assert packed_model.quant_report.notes == []


def test_names_that_transformers_changed(folder: Path, tiny_model: Any) -> None:
    """It renames prefixes, and makes one tensor of the experts."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors |= {f"model.layers.3.mlp.experts.{i}.{part}.weight": torch.zeros(2) for i in range(2) for part in ("up", "down")}
    save_file(tensors, file, metadata={"format": "pt"})
    renamed = ["model.vision_tower.proj.weight", "model.layers.3.mlp.experts.up_gate"]
    found = unused_tensors(tiny_model, renamed, read_headers([file]))
    assert sum(tensor.nbytes for tensor in found) == 4 * 2 * 4 + 20 + 12
    assert NAMES[2] in [tensor.name for tensor in found]


def test_a_hub_model_whose_files_are_not_in_the_cache(tiny_model: Any) -> None:
    found = unused_tensors(tiny_model, ["mtp.fc.weight"], hub_headers("nobody/nothing"))
    assert [(tensor.name, tensor.nbytes) for tensor in found] == [("mtp.fc.weight", 0)]
