"""The goals of the server's benchmark, from rows made up."""

from __future__ import annotations

from benchmarks.serve.goals import SHAPES_1B, SMOLLM2, TEXTS, serve


def test_every_goal_is_judged_by_its_own_rows() -> None:
    rows = [
        {"what": "decode", "model": SMOLLM2, "texts": texts, "potq": 100.0 * speed, "llama.cpp": 50.0 * speed}
        for texts, speed in zip(TEXTS, (1, 2, 3, 4), strict=True)
    ]
    rows += [
        {"what": "decode", "model": SHAPES_1B, "texts": texts, "potq": speed} for texts, speed in ((1, 10.0), (16, 30.0))
    ]
    rows += [{"what": "prefix", "model": SMOLLM2, "first": 2.0, "second": 0.1}]
    rows += [{"what": "overhead", "model": SMOLLM2, "server": 95.0, "engine": 100.0}]
    rows += [{"what": "gaps", "model": SMOLLM2, "median": 0.01, "p99": 0.015}]
    found = [(goal["measured"], goal["met"]) for goal in serve(rows)]
    measured = [round(value, 6) for value, _ in found if value is not None]
    assert measured == [2.0] * 4 + [4.0, 3.0, 0.05, 0.05, 1.5]
    assert [met for _, met in found] == [True] * 5 + [False, True, False, True]


def test_what_was_not_measured_is_not_met() -> None:
    assert all(goal["measured"] is None and not goal["met"] for goal in serve([]))
