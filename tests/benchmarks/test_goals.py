"""What results are judged by: the presets that ship, and goals without rows, which stay on the list."""

from __future__ import annotations

from typing import Any

from benchmarks.common.goals import Goal, at_least, at_most, under, verdict
from benchmarks.decode.goals import SPEED
from benchmarks.hardware.goals import FRONTIER, GATES
from benchmarks.kernels.goals import CPU
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


def _products(contestants: dict[str, tuple[str, float]]) -> list[dict[str, Any]]:
    """A row a contestant: its group, and microseconds in each of three rounds."""
    common = {"shape": "4096x4096", "m": 16, "gbytes_per_s": 1.0, "note": ""}
    return [
        {**common, "contestant": name, "group": group, "microseconds": time, "rounds_us": [time] * 3}
        for name, (group, time) in contestants.items()
    ]


def test_two_bits_are_compared_with_onnx_runtime_s_not_with_another_s() -> None:
    names = {"pot2": ("ours", 10.0), "ONNX Runtime 2-bit b32": ("2-bit", 15.0), "llama.cpp TQ2_0": ("2-bit", 11.0)}
    goal = next(goal for goal in CPU.goals(_products(names), "avx2") if goal["name"].startswith("AVX2: m=16, 2 bits"))
    assert goal["measured"] == 1.5
    assert not goal["met"]  # of one shape alone
    assert not [goal for goal in CPU.goals(_products(names), "avx512vnni") if goal["name"].startswith("AVX2")]


def test_a_ratio_is_of_the_rounds_that_have_both() -> None:
    rows = [{"what": "speed", "round": turn, "name": "potq pot4", "decode": 40.0} for turn in range(3)]
    rows += [{"what": "speed", "round": turn, "name": "potq pot3", "decode": 50.0} for turn in (1, 2)]
    assert _named(SPEED.goals(rows, "avx2"), "AVX2: decode: pot3 / pot4")[0]["measured"] == 1.25


def test_verdicts() -> None:
    goals = [at_least("a", 2, 2), at_most("a", 2, 2), under("a", 2, 2), at_least("a", 2, 1), at_most("a", 2, None)]
    assert [verdict(goal) for goal in goals] == ["met", "met", "missed", "missed", "not measured"]


def _gates(what: str, **areas: float) -> list[dict[str, Any]]:
    return [{"what": what, "scheme": name.split("_")[0], "structure": name, "area": area} for name, area in areas.items()]


def test_circuits_are_compared_with_the_smallest_of_their_peers() -> None:
    rows = _gates("dot", mxpot_shift=50.0, int4_booth=100.0, int4_wallace=80.0)
    goal = _named(GATES.goals(rows, ""), "16-lane dot product: mxpot / int4")[0]
    assert (goal["measured"], verdict(goal)) == (0.625, "missed")
    assert verdict(_named(GATES.goals(rows, ""), "multiply-accumulate: pot4 / int8")[0]) == "not measured"


def test_a_variant_that_is_worse_than_int4_does_not_count() -> None:
    def row(scheme: str, perplexity: float, area: float) -> dict[str, Any]:
        point = {"model": "SmolLM2", "scheme": scheme, "activation_bits": 8, "perplexity": perplexity}
        return {**point, "circuit": {"dot": area, "scaling": 10.0}}

    rows = [row("int4-g64", 20.0, 110.0), row("pot3-g64", 30.0, 50.0), row("int3-g64", 19.0, 40.0)]
    goal = _named(FRONTIER.goals(rows, ""), "SmolLM2")[0]
    assert goal["measured"] == 0.0
    goal = _named(FRONTIER.goals([*rows, row("apot4-g64", 20.0, 70.0)], ""), "SmolLM2")[0]
    assert (goal["measured"], verdict(goal)) == (1.5, "met")
