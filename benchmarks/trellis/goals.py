"""What the trellis is judged by."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Goal, Row, at_least, at_most
from benchmarks.common.results import Benchmark
from benchmarks.ptq.settings import FULL


def excess(rows: Sequence[Row], scheme: str, algorithm: str) -> float | None:
    """Perplexity above full precision's, if it was measured."""
    found = {(row["scheme"], row["algorithm"]): row["perplexity"] for row in rows if "perplexity" in row}
    base, value = found.get((FULL, "-")), found.get((scheme, algorithm))
    return None if base is None or value is None else value - base


def _ratio(rows: Sequence[Row], over: str, under: str, algorithm: str) -> float | None:
    above, below = excess(rows, over, algorithm), excess(rows, under, algorithm)
    return None if above is None or below is None else above / below


def trellis(rows: Sequence[Row]) -> list[Goal]:
    decibels = {(row["scheme"], row["source"]): row["decibels"] for row in rows if "decibels" in row}
    model = "TinyStories-656K, excess perplexity"
    return [
        at_least("Gaussian, groups of 64: pot2t, decibels", 10.5, decibels.get(("pot2t", "gaussian"))),
        at_most(f"{model}: pot2t / pot2, gptq", 0.75, _ratio(rows, "pot2t", "pot2", "gptq")),
        at_most(f"{model}: pot2t / pot2, balanced", 0.75, _ratio(rows, "pot2t", "pot2", "balanced")),
        at_most(f"{model}: pot2t, best", 7.3, excess(rows, "pot2t", "best")),
        *(
            at_most(f"{model}: pot2t / int2t, {name}", 1.0, _ratio(rows, "pot2t", "int2t", name))
            for name in ("fast", "best")
        ),
        at_most(f"{model}: apot3t / apot3s, best", 0.85, _ratio(rows, "apot3t", "apot3s", "best")),
    ]


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
