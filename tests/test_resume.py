"""A work folder: what a run left is found again, by that run alone, and nobody else's files are touched."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from potq.errors import ConfigError
from potq.resume import WorkFolder, fingerprint


def _tensors() -> dict[str, torch.Tensor]:
    return {"a.packed": torch.arange(6, dtype=torch.uint8).view(2, 3), "step": torch.tensor(3), "t": torch.ones(2, 3).t()}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    WorkFolder(tmp_path / "deep" / "work", "a").save("part", _tensors())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = WorkFolder(tmp_path / "deep" / "work", "a")
    found = folder.load("part")
    assert found is not None
    assert found.keys() == _tensors().keys()
    assert all(torch.equal(found[key], value) for key, value in _tensors().items())
    assert folder.load("other") is None
    folder.save("part", {})
    assert folder.load("part") == {}
    assert sorted(file.name for file in folder.folder.iterdir()) == ["fingerprint", "part.safetensors"]


def test_what_another_run_left_is_deleted_and_said_so(tmp_path: Path) -> None:
    WorkFolder(tmp_path, "a").save("part", _tensors())
    (tmp_path / "part.partial").write_bytes(b"half")
    with pytest.warns(UserWarning, match="was left by another run .*; starting anew"):
        folder = WorkFolder(tmp_path, "b")
    assert folder.load("part") is None
    assert [file.name for file in tmp_path.iterdir()] == ["fingerprint"]


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else; give an empty folder"):
        WorkFolder(tmp_path, "a")
    with pytest.raises(ConfigError, match="holds something else"):
        WorkFolder(tmp_path / "thesis.txt", "a")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_other_files_in_a_work_folder_survive_another_run(tmp_path: Path) -> None:
    WorkFolder(tmp_path, "a")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match="another run"):
        WorkFolder(tmp_path, "b")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("keep", [0, 5, 100])
def test_half_a_file_is_no_file(tmp_path: Path, keep: int) -> None:
    folder = WorkFolder(tmp_path, "a")
    folder.save("part", {"a": torch.ones(100)})
    file = tmp_path / "part.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert folder.load("part") is None


def test_the_fingerprint_knows_weights_tokens_and_settings() -> None:
    model = nn.BatchNorm1d(3)  # has a buffer without dimensions
    tokens = [torch.arange(6).view(2, 3)]
    found = {fingerprint(model, tokens, ("a", "0"))}

    def stable(*arguments: Any) -> bool:
        found.add(new := fingerprint(*arguments))
        return new == fingerprint(*arguments)

    assert stable(model, tokens, ("a0", ""))
    assert stable(model, [tokens[0].view(3, 2)], ("a", "0"))
    assert stable(model, [tokens[0].int()], ("a", "0"))
    assert stable(model, [tokens[0] + 1], ("a", "0"))
    assert stable(model.bfloat16(), tokens, ("a", "0"))
    model.float().weight.data[1] = 2.0
    assert stable(model, tokens, ("a", "0"))
    assert len(found) == 7
