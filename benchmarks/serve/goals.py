"""What the server is judged by: ratios are medians over rounds, each of contestants that took turns.

Of our two files the slower counts, of llama.cpp's the faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.common.goals import Goal, Row, at_least, at_most
from benchmarks.common.results import Benchmark

TEXTS = (1, 4, 8, 16)
SMOLLM2, SHAPES_1B = "SmolLM2-135M", "shapes of Llama-3.2-1B"
GAINS = {SMOLLM2: 3.0, SHAPES_1B: 4.0}


def serve(rows: Sequence[Row]) -> list[Goal]:
    """Of SmolLM2, but for one goal of a model that memory bounds."""
    return [
        *(_against_llama(rows, texts) for texts in TEXTS),
        *(
            at_least(f"{model}: tokens/s of 16 texts / of one", least, _least_gain(rows, model))
            for model, least in GAINS.items()
        ),
        at_most(
            "first token behind a shared prefix of 1,000 tokens / without",
            0.1,
            middle(ratios(rows, "prefix", "second", "first")),
        ),
        at_most("what the server costs at 8 texts, part of the engine's tokens/s", 0.03, middle(overheads(rows))),
        at_most(
            "time between tokens while prompts arrive, 99 % / median", 2.0, middle(ratios(rows, "gaps", "p99", "median"))
        ),
    ]


def decoded(rows: Sequence[Row], model: str, texts: int) -> dict[str, list[float]]:
    """Tokens per second of so many texts, by contestant, round by round."""
    chosen = [row for row in rows if (row["what"], row.get("texts"), row["model"]) == ("decode", texts, model)]
    names = dict.fromkeys(name for row in chosen for name in row["tokens_per_s"])
    return {name: [row["tokens_per_s"][name] for row in chosen] for name in names}


def best_of_llama(speeds: dict[str, list[float]]) -> str | None:
    """Its fastest file."""
    theirs = [name for name in speeds if name.startswith("llama.cpp")]
    return max(theirs, key=lambda name: median(speeds[name]), default=None)


def ours(speeds: dict[str, list[float]]) -> list[str]:
    return [name for name in speeds if name.startswith("potq")]


def against(speeds: dict[str, list[float]], one: str, other: str) -> list[float]:
    """How many times as fast ``one`` was as ``other``, in each round."""
    return [own / their for own, their in zip(speeds[one], speeds[other], strict=True)]


def gains(rows: Sequence[Row], model: str, name: str) -> list[float]:
    """How many times one text's tokens per second sixteen texts have, in each round that measured both."""
    one, many = (decoded(rows, model, texts).get(name, []) for texts in (1, 16))
    return [second / first for first, second in zip(one, many, strict=False)]


def ratios(rows: Sequence[Row], what: str, above: str, below: str) -> list[float]:
    return [row[above] / row[below] for row in rows if row["what"] == what]


def overheads(rows: Sequence[Row]) -> list[float]:
    """What of the engine's tokens per second the server does not reach."""
    return [1 - ratio for ratio in ratios(rows, "overhead", "server", "engine")]


def middle(found: Sequence[float]) -> float | None:
    return median(found) if found else None


def _against_llama(rows: Sequence[Row], texts: int) -> Goal:
    speeds = decoded(rows, SMOLLM2, texts)
    best, slowest = best_of_llama(speeds), min(ours(speeds), key=lambda name: median(speeds[name]), default=None)
    measured = None if best is None or slowest is None else median(against(speeds, slowest, best))
    name = f"tokens/s / llama.cpp's server, {texts} text{'s' * (texts > 1)}"
    goal = at_least(name, 1.8 if texts == 1 else 1.4, measured)
    return goal if best is None or slowest is None else goal | {"rows": [slowest, best]}


def _least_gain(rows: Sequence[Row], model: str) -> float | None:
    found = [gains(rows, model, name) for name in ours(decoded(rows, model, 16))]
    return min((median(each) for each in found if each), default=None)


SERVE = Benchmark("serve", serve, timed="cpu", packages=("fastapi", "uvicorn", "xllamacpp"))
BENCHMARKS = (SERVE,)
