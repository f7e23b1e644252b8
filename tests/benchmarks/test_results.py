"""Results files: one for each kind of machine where speed is measured, never rows of two in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import results
from benchmarks.common.goals import Goal, Row, at_least
from benchmarks.common.results import RESULTS, Benchmark, read, save
from benchmarks.registry import BENCHMARKS

HERE = {"cpu": "A", "cores": 2, "isa": "avx2"}


def _speed(rows: Sequence[Row]) -> list[Goal]:
    return [at_least("speed", 2.0, max((row["speed"] for row in rows), default=None))]


TIMED, UNTIMED = Benchmark("some_speed", _speed, timed="cpu"), Benchmark("some_accuracy", _speed)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The machine that measures, to be changed; results go to a folder of the test's."""
    machine: dict[str, Any] = dict(HERE)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "machine", lambda timed="": dict(machine))
    monkeypatch.setattr(results, "_kind", lambda timed: machine["isa"])
    return machine


def test_a_file_says_what_its_rows_are_judged_by(here: dict[str, Any], tmp_path: Path) -> None:
    goals = TIMED.write({"threads": 2}, [{"speed": 1.5}])
    assert [goal["met"] for goal in goals] == [False]
    content = read(tmp_path / "some_speed.avx2.json")
    assert content["machine"] == HERE
    assert content["goals"] == goals
    assert TIMED.load({"threads": 2}) == [{"speed": 1.5}]
    assert TIMED.load({"threads": 3}) == []


def test_another_instruction_set_has_a_file_of_its_own(here: dict[str, Any], tmp_path: Path) -> None:
    TIMED.write({}, [{"speed": 1.0}])
    here["isa"] = "avx512vnni"
    assert TIMED.load({}) == []
    TIMED.write({}, [{"speed": 3.0}])
    assert list(TIMED.by_kind()) == ["avx512vnni", "avx2"]
    assert [found["rows"] for found in TIMED.by_kind().values()] == [[{"speed": 3.0}], [{"speed": 1.0}]]


@pytest.mark.parametrize(("key", "value"), [("cpu", "B"), ("cores", 4)])
def test_rows_of_another_machine_are_refused(here: dict[str, Any], key: str, value: object) -> None:
    TIMED.write({}, [{"speed": 1.0}])
    here[key] = value
    with pytest.raises(SystemExit, match=f"measured on another machine \\({key} {HERE[key]}, here {value}\\)"):
        TIMED.load({})
    with pytest.raises(SystemExit, match="not mixed"):
        TIMED.write({}, [{"speed": 2.0}])
    assert read(TIMED.file())["rows"] == [{"speed": 1.0}]


def test_where_nothing_is_timed_any_machine_goes_on(here: dict[str, Any], tmp_path: Path) -> None:
    UNTIMED.write({}, [{"speed": 1.0}])
    here["cpu"] = "B"
    assert UNTIMED.load({}) == [{"speed": 1.0}]
    assert UNTIMED.file() == tmp_path / "some_accuracy.json"


def test_speed_is_not_measured_with_less_than_the_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTQ_CPU_ISA", "scalar")
    with pytest.raises(SystemExit, match="unset POTQ_CPU_ISA"):
        TIMED.file()


def test_a_row_is_a_line(tmp_path: Path) -> None:
    content = {"machine": HERE, "rows": [{"a": [1.5, 2.0]}, {"b": None}], "goals": []}
    save(tmp_path / "file.json", content)
    assert read(tmp_path / "file.json") == content
    assert len((tmp_path / "file.json").read_text().splitlines()) == 8


def test_every_results_file_has_a_benchmark() -> None:
    files = [path for benchmark in BENCHMARKS for path in benchmark.files()]
    assert sorted(files) == sorted(RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.*.json")), ids=lambda path: path.name)
def test_speeds_say_what_they_were_measured_on(path: Path) -> None:
    assert read(path)["machine"]["isa"] == path.name.split(".")[-2]


def test_results_stay_small() -> None:
    assert sum(file.stat().st_size for file in RESULTS.iterdir()) <= 2e6
