"""The server's benchmark: its goals and tables from rows made up, and what a round measures."""

from __future__ import annotations

from benchmarks.common.goals import Row
from benchmarks.serve.contestants import Processes
from benchmarks.serve.goals import SHAPES_1B, SMOLLM2, TEXTS, serve
from benchmarks.serve.measure import Bench, measured
from benchmarks.serve.report import others_table, speed_table

ROWS: list[Row] = [
    {
        "what": "decode",
        "model": SMOLLM2,
        "texts": texts,
        "tokens_per_s": {
            "potq apot4": 120.0 * speed,
            "potq apot3": 100.0 * speed,
            "llama.cpp Q4_0": 40.0 * speed,
            "llama.cpp IQ4_NL": 50.0 * speed,
        },
    }
    for texts, speed in zip(TEXTS, (1, 2, 3, 4), strict=True)
]
ROWS += [
    {"what": "decode", "model": SHAPES_1B, "texts": texts, "tokens_per_s": {"potq apot4": speed, "potq apot3": 11.0 * texts}}
    for texts, speed in ((1, 10.0), (16, 30.0))
]
ROWS += [{"what": "prefix", "model": SMOLLM2, "first": 2.0, "second": 0.1}]
ROWS += [{"what": "overhead", "model": SMOLLM2, "server": 95.0, "engine": 100.0}]
ROWS += [{"what": "gaps", "model": SMOLLM2, "median": 0.01, "p99": 0.015}]


def test_every_goal_is_judged_by_its_own_rows() -> None:
    """Ours by the slower file, llama.cpp by the faster one."""
    goals = serve(ROWS)
    found = [(goal["measured"], goal["met"]) for goal in goals]
    measured = [round(value, 6) for value, _ in found if value is not None]
    assert measured == [2.0] * 4 + [4.0, 3.0, 0.05, 0.05, 1.5]
    assert [met for _, met in found] == [True] * 5 + [False, True, False, True]
    assert goals[0]["rows"] == ["potq apot3", "llama.cpp IQ4_NL"]


def test_what_was_not_measured_is_not_met() -> None:
    assert all(goal["measured"] is None and not goal["met"] for goal in serve([]))


def test_tables_have_medians_and_their_spread() -> None:
    faster = [row | {"tokens_per_s": {**row["tokens_per_s"], "potq apot4": 2e3}} for row in ROWS if row["what"] == "decode"]
    table = speed_table([*ROWS, *faster], SMOLLM2)
    assert "| potq apot4 | 1060.0 | 1120.0 | 1180.0 | 1240.0 | 2.5 (1 to 4) |" in table
    assert "| potq apot3 / llama.cpp's faster file | 2 (2 to 2) |" in table
    assert "| 0.05 (0.05 to 0.05) |" in others_table(ROWS)


class Counted(Bench):
    """Measures nothing."""

    def decode(self, names: list[str], texts: int, number: int) -> Row:
        return {"tokens_per_s": dict.fromkeys(names, 1.0)}

    def prefix(self, number: int) -> Row:
        return {"first": 1.0, "second": 1.0}

    def overhead(self, number: int) -> Row:
        return {"server": 1.0, "engine": 1.0}

    def gaps(self, number: int) -> Row:
        return {"median": 1.0, "p99": 1.0}


def test_a_run_that_was_killed_goes_on() -> None:
    bench = Counted(SMOLLM2, Processes({}), 4)
    whole: list[Row] = []
    kept: list[int] = []
    measured(bench, 2, whole, lambda: kept.append(len(whole)))
    assert kept == list(range(1, 15))
    rest = whole[:5]
    measured(bench, 2, rest, lambda: kept.append(len(rest)))
    assert rest == whole
    assert kept[14:] == list(range(6, 15))
