"""The rows of the server's benchmark as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from benchmarks.common.goals import Row
from benchmarks.common.markdown import captioned, goals_table, table
from benchmarks.common.results import Content
from benchmarks.serve.goals import (
    SERVE,
    SHAPES_1B,
    SMOLLM2,
    TEXTS,
    against,
    best_of_llama,
    decoded,
    gains,
    ours,
    overheads,
    ratios,
)
from benchmarks.serve.plot import lines

_OTHERS: Mapping[str, Callable[[Sequence[Row]], list[float]]] = {
    "time to the first token behind a shared prefix of 1,000 tokens / without": lambda rows: ratios(
        rows, "prefix", "second", "first"
    ),
    "what the server costs at 8 texts, part of the engine's tokens/s": overheads,
    "time between tokens while prompts arrive, 99 % / median": lambda rows: ratios(rows, "gaps", "p99", "median"),
}


def speed_table(rows: Sequence[Row], model: str) -> str:
    """Tokens per second by contestant, then ours over llama.cpp's fastest file with its spread."""
    measured = lines(rows, model)
    counts = [texts for texts in TEXTS if any(texts in found for found in measured.values())]
    body = [
        [name, *(f"{median(found[texts]):.1f}" for texts in counts), spread(gains(rows, model, name))]
        for name, found in measured.items()
    ]
    for name in ours(decoded(rows, model, counts[0])) if counts else ():
        speeds = [decoded(rows, model, texts) for texts in counts]
        cells = [spread(against(each, name, best)) if (best := best_of_llama(each)) else "-" for each in speeds]
        body.append([f"{name} / llama.cpp's faster file", *cells, "-"])
    headings = [f"{texts} text{'s' * (texts > 1)}" for texts in counts]
    return f"{model}, tokens/s of all texts:\n\n{table(('', *headings, '16 texts / 1'), body)}"


def others_table(rows: Sequence[Row]) -> str:
    return table(("", "measured"), [[name, spread(of(rows))] for name, of in _OTHERS.items()])


def spread(found: Sequence[float]) -> str:
    """The median of the rounds, and the least and the largest of them."""
    return f"{median(found):.3g} ({min(found):.3g} to {max(found):.3g})" if found else "-"


def machine_tables(content: Content) -> str:
    rows = content["rows"]
    models = [model for model in (SMOLLM2, SHAPES_1B) if lines(rows, model)]
    parts = [*(speed_table(rows, model) for model in models), others_table(rows), goals_table(content["goals"])]
    return "\n\n".join(parts)


def document() -> dict[str, str]:
    """The tables of docs/serve.md, and the picture of each kind of machine."""
    pictures = [path.with_suffix(".png").name for path in SERVE.files()]
    shown = [f"![Tokens per second by the number of texts](../benchmarks/results/{name})" for name in pictures]
    return {"speed": "\n\n".join([captioned(SERVE, machine_tables), *shown]) if pictures else "Not measured yet."}
