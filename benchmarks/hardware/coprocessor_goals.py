"""What co-processors are judged by: tokens a second for the area of core and co-processor, at no worse perplexity."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Goal, Row, at_least
from benchmarks.common.results import Benchmark

CORE = "core alone"
EFFORTS = ("fast", "balanced")
INT4 = "int4-g64-e8m0"
"""Its co-processor scales by powers of two, as the best PoT ones do."""


def systems(rows: Sequence[Row]) -> dict[str, Row]:
    """By scheme."""
    return {row["scheme"]: row for row in rows if row["what"] == "system"}


def perplexities(rows: Sequence[Row], effort: str) -> dict[str, float]:
    """By scheme."""
    return {row["scheme"]: row["perplexity"] for row in rows if row["what"] == "perplexity" and row["effort"] == effort}


def tokens_per_second(row: Row, core: Row) -> float:
    """At the clock that the longest path allows: the system's, or the core's alone, which the mapper may have shortened."""
    return float(1e9 / (row["cycles"] * max(row["delay"], core["delay"])))


def density(row: Row, core: Row) -> float:
    """Tokens a second for a square millimetre."""
    return tokens_per_second(row, core) / float(row["area"] / 1e6)


def advantage(rows: Sequence[Row], effort: str, int4: str = INT4) -> float | None:
    """Of the best PoT system of no worse perplexity over int4's; 0 where none is as good, None where one is not measured."""
    found, perplexity = systems(rows), perplexities(rows, effort)
    if not {int4, CORE} <= found.keys() or not found.keys() - {CORE} <= perplexity.keys():
        return None
    core = found[CORE]
    good = [
        density(row, core) for scheme, row in found.items() if "pot" in scheme and perplexity[scheme] <= perplexity[int4]
    ]
    return round(max(good) / density(found[int4], core), 4) if good else 0.0


def _goals(rows: Sequence[Row]) -> list[Goal]:
    name = "a co-processor's tokens a second for its area, no worse perplexity: PoT / int4"
    return [at_least(f"{name}, effort {effort}", 1.15, advantage(rows, effort)) for effort in EFFORTS]


COPROCESSOR = Benchmark("hardware_coprocessor", _goals)
BENCHMARKS = (COPROCESSOR,)
