"""Text that the teacher writes: in parts, the same ones however often the run is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import potq
from potq.data.generate import self_generated
from potq.errors import ConfigError, DataError
from potq.qat import text
from potq.qat.text import written_by

ROWS = 3
LENGTH = 6


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_ROWS", ROWS)


def write(model: Any, folder: Path | None = None, tokens: int = 45, length: int = LENGTH, **options: Any) -> Tensor:
    return written_by(model, folder, tokens=tokens, length=length, **({"seed": 0} | options))


def killing(at: int) -> Callable[[int, int, str], None]:
    """A progress that ends the run as soon as ``at`` tokens are written."""

    def progress(done: int, total: int, speed: str) -> None:
        if done >= at:
            raise KeyboardInterrupt

    return progress


def names(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.safetensors"))


def test_shape_and_seed(tiny_model: Any) -> None:
    state = torch.get_rng_state()
    found = write(tiny_model)
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.shape, found.dtype) == ((8, LENGTH), torch.int64)
    assert len(found.unique(dim=0)) == 8  # no part is written twice
    assert torch.equal(found, write(tiny_model))
    others = [write(tiny_model, seed=seed) for seed in (1, 2)]
    rows = torch.cat([found, *others])
    assert len(rows.unique(dim=0)) == 24


def test_parts_are_what_the_model_writes(tiny_model: Any, tiny_folder: Path) -> None:
    tokenizer = potq.load_tokenizer(tiny_folder)
    found = write(tiny_model, tokens=30, tokenizer=tokenizer, seed=7)
    parts = [
        self_generated(tiny_model, window=LENGTH, windows=count, seed=text._seed(7, number), tokenizer=tokenizer)
        for number, count in enumerate((3, 2))
    ]
    assert torch.equal(found, torch.cat(parts))


@pytest.mark.parametrize("at", [1, 20, 40, 48])
def test_a_killed_run_goes_on_to_the_same_result(tiny_model: Any, tmp_path: Path, at: int) -> None:
    expected = write(tiny_model)
    with pytest.raises(KeyboardInterrupt):
        write(tiny_model, tmp_path / "work", progress=killing(at))
    done = (at - 1) // (ROWS * LENGTH)
    assert len(names(tmp_path / "work")) == done
    calls: list[tuple[int, int]] = []
    found = write(tiny_model, tmp_path / "work", progress=lambda done, total, speed: calls.append((done, total)))
    assert torch.equal(found, expected)
    assert [call for call in calls if call[0] <= done * ROWS * LENGTH] == [(18 * part, 48) for part in range(1, done + 1)]
    assert calls == sorted(set(calls))
    assert calls[-1] == (48, 48)


def test_what_is_there_is_not_written_again(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write(tiny_model, tmp_path / "work")
    assert names(tmp_path / "work") == ["text-00000", "text-00001", "text-00002"]
    monkeypatch.setattr(text, "self_generated", None)
    speeds: list[str] = []
    assert torch.equal(write(tiny_model, tmp_path / "work", progress=lambda *call: speeds.append(call[2])), expected)
    assert speeds == ["0 tokens/s"] * 3


def test_more_tokens_go_on(tiny_model: Any, tmp_path: Path) -> None:
    write(tiny_model, tmp_path / "work")
    calls: list[int] = []
    found = write(tiny_model, tmp_path / "work", tokens=80, progress=lambda done, *_: calls.append(done))
    assert torch.equal(found, write(tiny_model, tokens=80))
    assert calls[:3] == [18, 36, 39]  # the third part was a shorter one


@pytest.mark.parametrize("change", ["seed", "length", "tokenizer", "weights", "eos"])
def test_another_run_starts_anew(tiny_model: Any, tiny_folder: Path, tmp_path: Path, change: str) -> None:
    write(tiny_model, tmp_path / "work")
    options: dict[str, Any] = {}
    if change == "weights":
        tiny_model.model.norm.weight.data *= 1.5
    elif change == "eos":
        tiny_model.generation_config.eos_token_id = 17
    else:
        options = {change: potq.load_tokenizer(tiny_folder) if change == "tokenizer" else 5}
    with pytest.warns(UserWarning, match="was left by another run"):
        found = write(tiny_model, tmp_path / "work", **options)
    assert torch.equal(found, write(tiny_model, **options))


def test_bad_input(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="invalid number of tokens 0; use at least 1"):
        write(tiny_model, tmp_path / "work", tokens=0)
    with pytest.raises(DataError, match="windows of 129 tokens exceed the model's limit of 128"):
        write(tiny_model, tmp_path / "work", length=129)
    assert not (tmp_path / "work").exists()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else"):
        write(tiny_model, tmp_path)
