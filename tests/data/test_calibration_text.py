"""Calibration text by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import potq
from potq.data.calibration_text import load_calibration
from potq.data.generate import self_generated
from potq.data.text import read_documents
from potq.data.tokens import calibration_windows
from potq.errors import DataError


def test_text_of_a_file(tiny_model: Any, tiny_folder: Path) -> None:
    tokenizer = potq.load_tokenizer(tiny_folder)
    found = load_calibration("pydoc", tiny_model, tokenizer, window=20, windows=5, seed=3)
    expected = calibration_windows(tokenizer, read_documents("pydoc"), window=20, windows=5, seed=3)
    assert [batch.shape for batch in found] == [(1, 20)] * 5
    assert torch.equal(torch.cat(found), expected)


def test_text_that_the_model_writes(tiny_model: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "self").write_text("a file of that name is ./self")
    calls: list[Any] = []
    tokenizer = potq.load_tokenizer(tiny_folder)
    found = load_calibration(
        "self", tiny_model, tokenizer, window=20, windows=3, seed=3, batch=2, progress=lambda *call: calls.append(call)
    )
    assert torch.equal(
        torch.cat(found), self_generated(tiny_model, window=20, windows=3, seed=3, batch=2, tokenizer=tokenizer)
    )
    assert calls[-1][:2] == (60, 60)


def test_defaults(tiny_model: Any) -> None:
    found = load_calibration("self", tiny_model)
    assert [batch.shape for batch in found] == [(1, 128)] * 64  # the model's limit is less than 512
    assert potq.quantize(tiny_model, potq.PoTConfig("pot4", scale_method="weighted"), found[:2]).modules


def test_text_without_a_tokenizer(tiny_model: Any) -> None:
    with pytest.raises(DataError, match="the calibration text pydoc needs the model's tokenizer; pass it, or use 'self'"):
        load_calibration("pydoc", tiny_model)


@pytest.mark.parametrize("source", ["self", "pydoc"])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"window": 129}, "windows of 129 tokens exceed the model's limit of 128"),
        ({"window": 1}, "invalid window 1"),
        ({"windows": 0}, "windows"),
    ],
)
def test_sizes_that_cannot_be(tiny_model: Any, tiny_folder: Path, source: str, sizes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_calibration(source, tiny_model, potq.load_tokenizer(tiny_folder), **sizes)


def test_a_short_text_is_named(tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the cat")
    with pytest.raises(DataError, match=r"short\.txt: the calibration text has \d tokens, less than one window of 128"):
        load_calibration(str(tmp_path / "short.txt"), tiny_model, potq.load_tokenizer(tiny_folder))


@pytest.mark.parametrize("name", ["wikitext2", "tinystories"])
def test_nothing_is_calibrated_on_what_models_are_measured_on(name: str, tiny_model: Any, byte_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=f"{name} is the split that models are measured on; calibrate and train on .*:train"):
        load_calibration(name, tiny_model, byte_tokenizer)
