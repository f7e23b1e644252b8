"""Perplexities of the presets rounded to nearest, as tables: README's, and one of a model on a text it does not know."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Row
from benchmarks.common.markdown import table
from benchmarks.ptq.goals import RTN_TABLE, SMOLLM2, STORIES, TABLE
from benchmarks.ptq.settings import FULL

ORDER = (FULL, "apot4", "int4", "mxfp4", "pot4", "pot3", "int3", "pot3nz", "int3_midrise", "pot2", "int2")
WIKITEXT, OWN = "WikiText-2 test", "TinyStories"
TREATMENTS = {"linears": FULL, "all": "same"}
"""What is quantized, and how ``rtn_table`` says what became of embedding and head."""

Column = tuple[str, str, str]
"""Model, text, what is quantized."""


def accuracy() -> str:
    """README's table; both files round the same SmolLM2 on the same windows, and the second has more of its linears."""
    rows: list[Row] = RTN_TABLE.read()["rows"]
    more = [row for row in TABLE.read()["rows"] if row["model"] == SMOLLM2 and row["algorithm"] == "fast"]
    known = {(row["model"], row["text"], row["scheme"], row["embedding"]) for row in rows}
    more = [row | {"text": WIKITEXT, "embedding": FULL} for row in more]
    rows += [row for row in more if (row["model"], row["text"], row["scheme"], row["embedding"]) not in known]
    columns = [(model, text, what) for model, text in ((SMOLLM2, WIKITEXT), (STORIES, OWN)) for what in TREATMENTS]
    headings = [f"{model.split('-')[0]}: {what}" for model, _, what in columns]
    return table(("scheme", "bits per weight", *headings), lines(rows, columns))


def wikitext2_of_stories() -> str:
    """A model of children's stories on an encyclopedia: its perplexity is high from the start."""
    columns = [(STORIES, WIKITEXT, what) for what in TREATMENTS]
    return table(("scheme", "bits per weight", *TREATMENTS), lines(RTN_TABLE.read()["rows"], columns))


def lines(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[str]]:
    """A line a scheme."""
    found = []
    for scheme in ORDER:
        alike = [row for row in rows if row["scheme"] == scheme]
        if alike:
            name = scheme if scheme == FULL else f"`{scheme}`"
            found.append([name, f"{alike[0]['bits_per_weight']:.4g}", *(figure(_find(alike, column)) for column in columns)])
    return found


def _find(rows: Sequence[Row], column: Column) -> float | None:
    """Full precision is the same whatever becomes of the embedding."""
    model, text, what = column
    embedding = FULL if rows[0]["scheme"] == FULL else TREATMENTS[what]
    found = (row["perplexity"] for row in rows if (row["model"], row["text"], row["embedding"]) == (model, text, embedding))
    return next(found, None)


def figure(perplexity: float | None) -> str:
    """As precise as it is worth."""
    if perplexity is None:
        return "-"
    if perplexity >= 1e6:
        return f"{perplexity / 1e6:.1f} million"
    return f"{perplexity:.2f}" if perplexity < 100 else f"{perplexity:,.0f}"
