"""The tables of docs/trellis.md."""

from __future__ import annotations

from benchmarks.common.goals import Row
from benchmarks.common.markdown import captioned, table
from benchmarks.common.results import Content
from benchmarks.ptq.goals import SMOLLM2, STORIES
from benchmarks.ptq.settings import FULL
from benchmarks.trellis.goals import SPEED, TRELLIS, draws, excess, gops, tokens

_ALGORITHMS = ("fast", "gptq", "balanced", "best")


def document() -> dict[str, str]:
    rows: list[Row] = TRELLIS.read()["rows"]
    speed = captioned(SPEED, _speed)
    return {"trellis sources": _sources(rows), "trellis models": _models(rows), "trellis speed": speed}


def _speed(content: Content) -> str:
    rows: list[Row] = content["rows"]
    lines = []
    for scheme in dict.fromkeys(row["name"] for row in rows if "gops" in row):
        products = [gops(rows, where, m, scheme) for where in ("cache", "memory") for m in (1, 16)]
        size = next((row["weight_bytes"] for row in rows if (row["what"], row["name"]) == ("decode", scheme)), None)
        figures = [*products, tokens(rows, scheme), size and size / 1e6]
        lines.append([f"`{scheme}`", *("-" if figure is None else f"{figure:.0f}" for figure in figures)])
    products_of = [f"{where}, m = {m}: GOP/s" for where in ("in the caches", "from memory") for m in (1, 16)]
    return table(("scheme", *products_of, "decode, tokens/s", "the weights in memory, MB"), lines)


def _sources(rows: list[Row]) -> str:
    found = {(row["scheme"], row["source"]): f"{row['decibels']:.2f}" for row in rows if "decibels" in row}
    names = list(dict.fromkeys(source for _, source in found))
    schemes = dict.fromkeys(scheme for scheme, _ in found)
    lines = [[f"`{scheme}`", *(found.get((scheme, name), "-") for name in names)] for scheme in schemes]
    return table(("scheme", *names), lines)


def _models(rows: list[Row]) -> str:
    lines = []
    for model in (STORIES, SMOLLM2):
        for scheme in dict.fromkeys(row["scheme"] for row in rows if row.get("model") == model and row["scheme"] != FULL):
            name, _, rest = scheme.partition(" ")
            figures = [_figure(rows, model, scheme, algorithm) for algorithm in _ALGORITHMS]
            bits = next(row["bits_per_weight"] for row in rows if (row["scheme"], row.get("model")) == (scheme, model))
            lines.append([model, f"`{name}` {rest}".strip(), f"{bits:.4g}", *figures])
    return table(("model", "scheme", "bits per weight", *_ALGORITHMS), lines)


def _figure(rows: list[Row], model: str, scheme: str, algorithm: str) -> str:
    """The mean of the draws, and their range."""
    value, exact = excess(rows, model, scheme, algorithm), draws(rows, model, FULL, "-")
    if value is None:
        return "-"
    found = [row["perplexity"] - exact[0]["perplexity"] for row in draws(rows, model, scheme, algorithm)]
    return f"{value:.2f} ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else f"{value:.2f}"
