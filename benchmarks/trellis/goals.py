"""What the trellis is judged by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from benchmarks.common.goals import Goal, Row, at_least, at_most
from benchmarks.common.results import Benchmark
from benchmarks.ptq.goals import SMOLLM2, STORIES
from benchmarks.ptq.settings import FULL
from potq.evaluate.bootstrap import middle, resampled


def draws(rows: Sequence[Row], model: str, scheme: str, algorithm: str) -> list[Row]:
    """The rows of one model in one scheme, one for each draw of calibration windows."""
    wanted = {"model": model, "scheme": scheme, "algorithm": algorithm}
    return [row for row in rows if wanted.items() <= row.items()]


def excess(rows: Sequence[Row], model: str, scheme: str, algorithm: str) -> float | None:
    """Perplexity above full precision's, the mean of all draws, if it was measured."""
    exact, found = draws(rows, model, FULL, "-"), draws(rows, model, scheme, algorithm)
    if not exact or not found:
        return None
    return float(statistics.mean(row["perplexity"] for row in found) - exact[0]["perplexity"])


def _best(rows: Sequence[Row], model: str, schemes: Sequence[str], algorithm: str) -> str:
    """That of least excess, as far as they were measured; otherwise the first."""
    found = {scheme: excess(rows, model, scheme, algorithm) for scheme in schemes}
    known = {scheme: value for scheme, value in found.items() if value is not None}
    return min(known, key=lambda scheme: known[scheme], default=schemes[0])


def _ratio(rows: Sequence[Row], model: str, over: str, under: str, algorithm: str, target: float) -> Goal:
    """Of two excesses, with its interval over the windows; the draws are what they are."""
    name = f"{model}, excess perplexity: {over} / {under}, {algorithm}"
    above, below = excess(rows, model, over, algorithm), excess(rows, model, under, algorithm)
    if above is None or below is None:
        return at_most(name, target, None)
    sides = [draws(rows, model, FULL, "-")[:1], *(draws(rows, model, scheme, algorithm) for scheme in (over, under))]
    nll = torch.tensor([row["window_nll"] for side in sides for row in side], dtype=torch.float64)
    found = resampled(nll, sides[0][0]["predicted_tokens"])
    base, first, second = (part.mean(0) for part in found.split([len(side) for side in sides]))
    ends = [round(end, 4) for end in middle((first - base) / (second - base))]
    return at_most(name, target, above / below) | {"interval": ends}


def trellis(rows: Sequence[Row]) -> list[Goal]:
    """Integers of no more bits than ``pot2t``'s: the asymmetric ones, with their zero points, have more."""
    decibels = {(row["scheme"], row["source"]): row["decibels"] for row in rows if "decibels" in row}
    found = [at_least("Gaussian, groups of 64: pot2t, decibels", 10.5, decibels.get(("pot2t", "gaussian")))]
    for model, most in ((STORIES, 7.3), (SMOLLM2, 21.0)):
        integers = _best(rows, model, ("int2_midrise", "int2"), "best")
        found += [
            _ratio(rows, model, "pot2t", "pot2", "gptq", 0.75),
            _ratio(rows, model, "pot2t", "pot2", "balanced", 0.75),
            at_most(f"{model}, excess perplexity: pot2t, best", most, excess(rows, model, "pot2t", "best")),
            _ratio(rows, model, "pot2t", integers, "best", 0.85),
            *(_ratio(rows, model, "pot2t", "int2t", name, 1.0) for name in ("fast", "best")),
            _ratio(rows, model, "apot3t", "apot3s", "best", 0.85),
        ]
    return found


def gops(rows: Sequence[Row], where: str, m: int, scheme: str) -> float | None:
    wanted = {"what": "product", "where": where, "m": m, "name": scheme}
    return next((row["gops"] for row in rows if wanted.items() <= row.items()), None)


def tokens(rows: Sequence[Row], scheme: str) -> float | None:
    """A second."""
    return next((row["tokens_per_s"] for row in rows if (row["what"], row["name"]) == ("decode", scheme)), None)


def speed(rows: Sequence[Row]) -> list[Goal]:
    def times(over: float | None, under: float | None) -> float | None:
        return None if over is None or under is None else round(over / under, 3)

    cold, ours = (gops(rows, "memory", 1, scheme) for scheme in ("pot2", "pot2t"))
    decoded = tokens(rows, "pot2t")
    return [
        at_most("one row from memory: time of pot2t / pot2", 1.35, times(cold, ours)),
        at_least("decode: tokens a second of pot2t / pot2", 0.8, times(decoded, tokens(rows, "pot2"))),
        at_least("decode: tokens a second of pot2t / pot4", 1.0, times(decoded, tokens(rows, "pot4"))),
    ]


TRELLIS = Benchmark("trellis", trellis)
SPEED = Benchmark("trellis_speed", speed, timed="cpu")
BENCHMARKS = (TRELLIS, SPEED)
