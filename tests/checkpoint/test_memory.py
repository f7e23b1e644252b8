"""What a model needs is counted from its headers; what there is, within a container's limit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import potq
from potq.checkpoint import memory
from potq.checkpoint.memory import memory_available, memory_needed
from potq.config import EFFORTS
from potq.errors import CheckpointError
from potq.nn.properties import tensor_bytes, weight_count


def test_what_is_needed_follows_from_dtype_and_effort(tiny_folder: Path) -> None:
    model = potq.load(tiny_folder)
    count = weight_count(model)
    needed = memory_needed(tiny_folder, EFFORTS["balanced"], "auto")
    assert needed == tensor_bytes(model) + count * 5 // 8 + memory._WORK
    assert memory_needed(tiny_folder, EFFORTS["balanced"], "bfloat16") == needed - 2 * count
    assert memory_needed(tiny_folder, EFFORTS["best"], "auto") == needed + 24 * count
    assert memory_needed(tiny_folder, EFFORTS["potptq"], "auto") == needed


def test_an_incomplete_folder_is_named(tiny_folder: Path) -> None:
    file = tiny_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="truncated or corrupted"):
        memory_needed(tiny_folder, EFFORTS["balanced"], "auto")


@pytest.mark.parametrize(
    ("limit", "expected"), [("max\n", 1000), ("700\n", 700 - 500 + 150), ("100\n", 0), ("99999\n", 1000), (None, 1000)]
)
def test_a_container_has_what_its_limit_leaves(
    limit: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    (tmp_path / "memory.current").write_text("500\n")
    (tmp_path / "memory.stat").write_text("anon 350\ninactive_file 100\nactive_file 50\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert memory_available() == expected
