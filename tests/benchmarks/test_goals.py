"""What results are judged by: the presets that ship, and goals without rows, which stay on the list."""

from __future__ import annotations

from typing import Any

from benchmarks.common.goals import Goal, at_least, at_most, under, verdict
from benchmarks.ptq.goals import SMOLLM2, STORIES, table
from benchmarks.ptq.settings import FULL

NLL = {FULL: 1.0, "apot4": 1.2, "nf4": 1.1, "int4": 1.3, "2-term {1,2,3,5,7,9,12,16}": 1.05}
TOKENS = 10


def _rows() -> list[dict[str, Any]]:
    """Perplexity is the exponential of nats a token; two windows of five tokens."""
    rows = []
    for scheme, nats in NLL.items():
        found = {"perplexity": 2.718281828459045**nats, "window_nll": [5 * nats, 5 * nats], "predicted_tokens": TOKENS}
        rows.append({"model": STORIES, "scheme": scheme, "algorithm": "-" if scheme == FULL else "fast", **found})
    return rows


def _named(goals: list[Goal], words: str) -> list[Goal]:
    return [goal for goal in goals if words in goal["name"]]


def test_four_bits_are_judged_by_the_preset_not_by_the_best_table() -> None:
    nf4, int4 = (_named(table(_rows()), f"fast: 4 bits, apot4 / {peer}")[0] for peer in ("NF4", "best int4"))
    assert verdict(nf4) == "missed"  # the table that nobody ships would have met it
    assert verdict(int4) == "met"
    assert nf4["rows"] == ["apot4, fast", "nf4, fast"]


def test_goals_without_rows_are_on_the_list() -> None:
    goals = table(_rows())
    assert len(goals) == len(table([])) == 34
    for words in (
        "balanced: 2 bits",
        "balanced: 3 bits",
        "best: apot4, E8M0 with row",
        "best: pot4, E8M0 with row",
    ):
        found = _named(goals, f"{SMOLLM2}, {words}")
        assert [verdict(goal) for goal in found] == ["not measured"], words


def test_verdicts() -> None:
    goals = [at_least("a", 2, 2), at_most("a", 2, 2), under("a", 2, 2), at_least("a", 2, 1), at_most("a", 2, None)]
    assert [verdict(goal) for goal in goals] == ["met", "met", "missed", "missed", "not measured"]
