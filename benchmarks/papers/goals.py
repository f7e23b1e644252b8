"""The papers' claims, judged by the rows of ``papers/gpt2.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.common.goals import Goal, Row, at_least, at_most
from benchmarks.common.results import Benchmark
from benchmarks.papers.settings import FULL, TRAINED_FULL, exponent_name, name_15

PAPER_RATIO, PAPER_GAIN = 30.47 / 23.73, 1 - 30.47 / 90


def papers(rows: Sequence[Row]) -> list[Goal]:
    """The papers' claims, each for their settings and for potq's."""
    found: list[Goal] = []
    for paper in (True, False):
        words = "the paper's settings" if paper else "potq's settings"
        for bits, most in ((4, 1.3), (6, 0.88)):
            change = _entropy_change(rows, exponent_name(bits, paper=paper))
            found.append(at_most(f"2506.00315: cross entropy above fp32's at {bits} exponent bits, {words}", most, change))
        ptq, qat = name_15("PTQ", paper=paper), name_15("QAT", paper=paper)
        gain = _minus_one(_ratio(rows, qat, ptq))
        found += [
            *(
                at_most(f"2601.02298: perplexity of QAT / {base}, {words}", round(PAPER_RATIO, 3), _ratio(rows, qat, base))
                for base in (FULL, TRAINED_FULL)
            ),
            at_least(f"2601.02298: perplexity that QAT saves on PTQ, {words}", round(PAPER_GAIN, 2), gain),
            at_least(f"2601.02298: memory saved, {words}", 0.875, _minus_one(_quotient(rows, qat, FULL, "bytes"))),
            at_least(f"2601.02298: tokens a second / fp32's, {words}", 3.0, _speed(rows, qat)),
            at_most(f"2601.02298: BERTScore lost by QAT, {words}", 0.01, _minus_one(_bertscore(rows, qat))),
        ]
    return found


def find(rows: Sequence[Row], name: str) -> Row | None:
    return next((row for row in rows if row["setting"] == name), None)


def _quotient(rows: Sequence[Row], name: str, base: str, key: str) -> float | None:
    one, other = find(rows, name), find(rows, base)
    return one[key] / other[key] if one and other else None


def _ratio(rows: Sequence[Row], name: str, base: str) -> float | None:
    return _quotient(rows, name, base, "perplexity")


def _minus_one(ratio: float | None) -> float | None:
    return None if ratio is None else 1 - ratio


def _entropy_change(rows: Sequence[Row], name: str) -> float | None:
    ratio = _ratio(rows, name, FULL)
    return None if ratio is None else math.log(ratio)


def _speed(rows: Sequence[Row], name: str) -> float | None:
    row = find(rows, name)
    return row["speed"]["ratio"] if row else None


def _bertscore(rows: Sequence[Row], name: str) -> float | None:
    scores = (find(rows, name) or {}).get("bertscore")
    return scores["model_true"] / scores["full_true"] if scores else None


NANO = Benchmark("paper_gpt2_nano", papers, timed="cpu")
BENCHMARKS = (NANO,)
