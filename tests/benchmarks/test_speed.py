"""What ``decode/speed.py`` measures: rounds and starts that are missing."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.decode import speed
from benchmarks.decode.contestants import Entry

OURS, UNPACKED = Entry("potq pot4", "engine", "pot4"), Entry("potq float32", "engine, unpacked", "float32")


def test_starts_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(speed, "first_token", lambda entry: {"what": "first token", "name": entry.name})
    rows = [{"what": "speed", "name": OURS.name, "round": 0}, {"what": "first token", "name": OURS.name}]
    speed.time_all([OURS, UNPACKED], rows, 1, kept.append)
    assert kept == [{"what": "first token", "name": OURS.name}] * (speed.STARTS - 1)


def test_a_file_is_timed_in_every_build_of_llama_cpp() -> None:
    listed = speed.llama_entries({"q4_0": "a.gguf"}, (*speed.BUILDS, speed.FORK))
    assert [(entry.name, entry.kind, entry.argument) for entry in listed] == [
        ("llama.cpp Q4_0", "llama.cpp", "a.gguf"),
        ("llama.cpp native Q4_0", "llama.cpp native", "a.gguf"),
        ("ik_llama.cpp Q4_0", "ik_llama.cpp", "a.gguf"),
    ]
