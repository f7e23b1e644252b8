"""What the server is judged by: ratios are medians over rounds, each of two servers that took turns."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.common.goals import Goal, Row, at_least, at_most
from benchmarks.common.results import Benchmark

TEXTS = (1, 4, 8, 16)
SMOLLM2, SHAPES_1B = "SmolLM2-135M", "shapes of Llama-3.2-1B"


def serve(rows: Sequence[Row]) -> list[Goal]:
    """Of SmolLM2, but for one goal of a model that memory bounds."""
    return [
        *(_against_llama(rows, texts) for texts in TEXTS),
        *(
            at_least(f"{model}: tokens/s of 16 texts / of one", least, _gain(rows, model))
            for model, least in ((SMOLLM2, 3.0), (SHAPES_1B, 4.0))
        ),
        at_most(
            "first token behind a shared prefix of 1,000 tokens / without", 0.1, _ratio(rows, "prefix", "second", "first")
        ),
        at_most("what the server costs at 8 texts, part of the engine's tokens/s", 0.03, _overhead(rows)),
        at_most("time between tokens while prompts arrive, 99 % / median", 2.0, _ratio(rows, "gaps", "p99", "median")),
    ]


def _against_llama(rows: Sequence[Row], texts: int) -> Goal:
    found = [row for row in rows if (row["what"], row.get("texts"), row["model"]) == ("decode", texts, SMOLLM2)]
    ratio = median(row["potq"] / row["llama.cpp"] for row in found if "llama.cpp" in row) if found else None
    return at_least(f"tokens/s / llama.cpp's server, {texts} text{'s' * (texts > 1)}", 1.8 if texts == 1 else 1.4, ratio)


def _gain(rows: Sequence[Row], model: str) -> float | None:
    speed = {
        texts: [row["potq"] for row in rows if (row["what"], row.get("texts"), row["model"]) == ("decode", texts, model)]
        for texts in (1, 16)
    }
    return median(many / one for one, many in zip(speed[1], speed[16], strict=True)) if speed[1] else None


def _ratio(rows: Sequence[Row], what: str, above: str, below: str) -> float | None:
    found = [row[above] / row[below] for row in rows if row["what"] == what]
    return median(found) if found else None


def _overhead(rows: Sequence[Row]) -> float | None:
    found = [1 - row["server"] / row["engine"] for row in rows if row["what"] == "overhead"]
    return median(found) if found else None


SERVE = Benchmark("serve", serve, timed="cpu", packages=("fastapi", "uvicorn", "xllamacpp"))
BENCHMARKS = (SERVE,)
