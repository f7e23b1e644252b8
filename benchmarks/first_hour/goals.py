"""What a new user's first hour is judged by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.common.goals import Goal, Row, at_most
from benchmarks.common.results import Benchmark


def first_hour(rows: Sequence[Row]) -> list[Goal]:
    """The slowest of the mistakes counts, and the median of repetitions."""
    mistakes = {row["name"] for row in rows if row["task"] == "mistake"}
    waits = [_median([row for row in rows if row.get("name") == name], "seconds") or 0 for name in mistakes]
    search = [row for row in rows if row["task"] == "search"]
    gemma = [row for row in rows if row["task"] == "gemma"]
    return [
        at_most("a mistake is answered, seconds, the slowest of them", 0.5, max(waits, default=None)),
        at_most(
            "first token of packed SmolLM2 from the shell, seconds",
            0.8,
            _median([row for row in rows if row["task"] == "first token"], "seconds"),
        ),
        at_most("scales of an 8-bit embedding, ns a weight on one thread", 60, _median(search, "ns_per_weight")),
        at_most("Gemma-3-270M from GGUF, seconds", 60, _median(gemma, "seconds")),
        at_most("its header, part of the CPU time", 0.02, _median(gemma, "header_part")),
    ]


def _median(rows: Sequence[Row], key: str) -> float | None:
    return statistics.median(row[key] for row in rows) if rows else None


FIRST_HOUR = Benchmark("first_hour", first_hour, timed="cpu", packages=("tokenizers", "gguf"))
BENCHMARKS = (FIRST_HOUR,)
