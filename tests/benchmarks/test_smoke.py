"""The guard against a machine that got slower: what it says of rows and of those that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.results import machine, save
from benchmarks.decode import smoke
from benchmarks.decode.goals import SMOKE


def row(what: str, ratio: float) -> dict[str, Any]:
    return {"what": what, "ratio": ratio, "quartiles": [ratio, ratio]}


@pytest.mark.parametrize(("ratio", "good"), [(1.0, True), (0.86, True), (0.84, False), (3.0, True)])
def test_a_ratio_that_fell_is_named(ratio: float, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "smoke.json", {"rows": [row("decode", 1.0), row("prefill", 2.0)]})
    monkeypatch.setattr(type(SMOKE), "file", lambda self: tmp_path / "smoke.json")
    said: list[str] = []
    assert smoke.compared([row("decode", ratio), row("prefill", 2.0)], said.append) == good
    assert ("FELL" in said[0]) == (not good)
    assert "FELL" not in said[1]


def test_another_cpu_of_the_kind_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = machine("cpu") | {"cpu": "another CPU"}
    save(tmp_path / "smoke.json", {"machine": other, "rows": [row("decode", 9.0)]})
    monkeypatch.setattr(type(SMOKE), "file", lambda self: tmp_path / "smoke.json")
    said: list[str] = []
    assert smoke.compared([row("decode", 1.0)], said.append)
    assert "another CPU" in said[0]
    assert "FELL" not in said[0]


def test_another_kind_of_machine_has_nothing_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(SMOKE), "file", lambda self: tmp_path / "none.json")
    said: list[str] = []
    assert smoke.compared([row("decode", 0.1)], said.append)
    assert "none kept for this kind of machine" in said[0]
