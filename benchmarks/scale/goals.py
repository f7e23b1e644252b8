"""What large models are judged by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.common.goals import Goal, Row, at_least, at_most
from benchmarks.common.results import Benchmark

MEMORY, TIME, RANKS, EXPERTS = PARTS = ("memory", "time", "ranks", "experts")


def scale(rows: Sequence[Row]) -> list[Goal]:
    def medians(part: str, key: str) -> list[float]:
        """Of the rounds of each case."""
        cases = dict.fromkeys(row.get("case") for row in rows if row["part"] == part)
        found = [[row[key] for row in rows if row["part"] == part and row.get("case") == case] for case in cases]
        return [statistics.median(values) for values in found]

    off = [max(ratio, 1 / ratio) for ratio in medians(TIME, "ratio")]
    return [
        _peak(rows),
        at_most("two blocks of 8B, balanced: estimate and time, the larger over the smaller", 1.5, max(off, default=None)),
        at_least(
            "SmolLM2-135M, balanced: two processes of a thread / one, times as fast",
            1.6,
            min(medians(RANKS, "speedup"), default=None),
        ),
        at_least("speed of an expert's weight / a linear's", 0.5, min(medians(EXPERTS, "speed"), default=None)),
    ]


def _peak(rows: Sequence[Row]) -> Goal:
    """Of the run with the most blocks: all of them, or those whose time was taken."""
    found = [row for row in rows if "beside_cache" in row]
    blocks = max((row["blocks"] for row in found), default=0)
    peak = max((row["beside_cache"] for row in found if row["blocks"] == blocks), default=None)
    goal = at_most("8B, balanced: peak resident memory beside the hidden states, bytes", 6e9, peak)
    return goal if peak is None else goal | {"rows": [f"{blocks} blocks"]}


SCALE = Benchmark("scale", scale, timed="cpu")
BENCHMARKS = (SCALE,)
