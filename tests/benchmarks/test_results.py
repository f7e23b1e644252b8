"""Results files: one for each kind of machine where speed is measured, never rows of two in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import results
from benchmarks.common.goals import Goal, Row, at_least
from benchmarks.common.results import RESULTS, Benchmark, cpu_name, described, read, save
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
    with pytest.raises(SystemExit) as refused:
        TIMED.load({})
    machines = f"Its machine: A, 2 cores, AVX2. This machine: {described(here)}."
    for words in (str(TIMED.file()), machines, "POTQ_SPEED_RESULTS=FOLDER", "remove the file"):
        assert words in str(refused.value)
    with pytest.raises(SystemExit, match="not mixed"):
        TIMED.write({}, [{"speed": 2.0}])
    assert read(TIMED.file())["rows"] == [{"speed": 1.0}]


def test_a_cpu_of_the_same_name_is_told_apart_where_the_file_knows_more(here: dict[str, Any]) -> None:
    TIMED.write({}, [{"speed": 1.0}])
    here["cpu_id"] = "vendor 25 17 1"
    assert TIMED.load({}) == [{"speed": 1.0}]
    TIMED.write({}, [{"speed": 1.0}])
    here["cpu_id"] = "vendor 26 2 1"
    with pytest.raises(SystemExit, match=r"A \(vendor 25 17 1\), 2 cores, AVX2\. This machine: A \(vendor 26 2 1\)"):
        TIMED.load({})


def test_another_folder_takes_the_speeds_of_a_second_machine(
    here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TIMED.write({}, [{"speed": 1.0}])
    monkeypatch.setenv("POTQ_SPEED_RESULTS", str(tmp_path / "second"))
    here["cpu"] = "B"
    TIMED.write({}, [{"speed": 2.0}])
    UNTIMED.write({}, [{"speed": 3.0}])
    assert [path.parent.name for path in TIMED.files()] == ["second"]
    assert UNTIMED.file() == tmp_path / "some_accuracy.json"
    assert UNTIMED.file().exists()


def test_a_kind_of_machine_may_have_goals_of_its_own(here: dict[str, Any]) -> None:
    def more(rows: Sequence[Row]) -> list[Goal]:
        return [at_least("more", 1.0, 2.0)]

    benchmark = Benchmark("some_speed", _speed, timed="cpu", judge_kind={"avx512vnni": more})
    assert [goal["name"] for goal in benchmark.write({}, [])] == ["speed, at least"]
    here["isa"] = "avx512vnni"
    assert [goal["name"] for goal in benchmark.write({}, [])] == ["speed, at least", "more, at least"]


def test_where_nothing_is_timed_any_machine_goes_on(here: dict[str, Any], tmp_path: Path) -> None:
    UNTIMED.write({}, [{"speed": 1.0}])
    here["cpu"] = "B"
    assert UNTIMED.load({}) == [{"speed": 1.0}]
    assert UNTIMED.file() == tmp_path / "some_accuracy.json"


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
    assert sum(file.stat().st_size for file in RESULTS.iterdir()) <= 3.5e6


@pytest.mark.parametrize(
    ("cpu_id", "name"),
    [("AuthenticAMD 25 17 1", "AMD EPYC family 25 model 17"), (None, "AMD EPYC"), ("ARM", "AMD EPYC")],
)
def test_a_cpu_is_named_with_what_tells_it_apart(cpu_id: str | None, name: str) -> None:
    assert cpu_name({"cpu": "AMD EPYC", "cpu_id": cpu_id}) == name
    assert cpu_name({"cpu": "AMD EPYC"}) == "AMD EPYC"
