"""What the models' rows are judged by: every architecture, and a small Mixtral."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.common.goals import Goal, Row, at_least, at_most, no_more
from benchmarks.common.results import Benchmark

OUTCOMES = ("fast", "dequantized", "saved", "streamed", "balanced", "engine", "generated", "lora", "gguf")


def table(rows: Sequence[Row]) -> list[Goal]:
    """How many architectures there are, and that nothing of them is a bug."""
    experts = [share for row in rows if (share := row["fast"].get("done", {}).get("experts")) is not None]
    differences = [row["dequantized"]["done"] for row in rows if "done" in row.get("dequantized", {})]
    ratios = {key: [row["name"] for row, _, found in outcomes(rows) if key in found] for key in ("raw", "wrong")}
    measured = bool(rows)
    return [
        at_least("architectures", 60, len(rows) if measured else None),
        no_more("architectures with an exception that is not potq's", 0, _count(ratios["raw"]) if measured else None),
        no_more("architectures with a wrong result", 0, _count(ratios["wrong"]) if measured else None),
        at_least("share of experts that is quantized, the least", 0.95, min(experts, default=None)),
        at_most("packed against dequantized, relative, the largest", 1e-4, max(differences, default=None)),
    ]


def outcomes(rows: Sequence[Row]) -> Iterator[tuple[Row, str, dict[str, Any]]]:
    """What was tried, row by row."""
    for row in rows:
        yield from ((row, name, row[name]) for name in OUTCOMES if name in row)


def _count(names: list[str]) -> int:
    return len(set(names))


TABLE = Benchmark("models", table, packages=("peft",))


FULL = "full precision"
SCHEMES, EFFORTS = ("apot4", "pot4", "pot3s", "pot2"), ("fast", "balanced")
_OVER_FULL = {"apot4": 1.02, "pot3s": 1.1}


def mixtral(rows: Sequence[Row]) -> list[Goal]:
    """Set before anything was measured."""
    found = {(row["scheme"], row["effort"]): row["perplexity"] for row in rows}
    full = found.get((FULL, "-"))
    goals = []
    for scheme, most in _OVER_FULL.items():
        fast, balanced = (found.get((scheme, effort)) for effort in EFFORTS)
        ratio = balanced / full if full and balanced else None
        left = (balanced - full) / (fast - full) if full and fast and balanced else None
        goals += [
            at_most(f"{scheme}: perplexity, balanced / full precision", most, ratio),
            at_most(f"{scheme}: excess perplexity, balanced / fast", 0.7, left),
        ]
    shares = [row["experts"] for row in rows if "experts" in row]
    return [*goals, at_least("share of experts that is quantized, the least", 0.95, min(shares, default=None))]


MIXTRAL = Benchmark("models_mixtral", mixtral)
BENCHMARKS = (TABLE, MIXTRAL)
