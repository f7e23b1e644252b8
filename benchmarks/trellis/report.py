"""The tables of docs/trellis.md."""

from __future__ import annotations

from benchmarks.common.goals import Row
from benchmarks.common.markdown import captioned, table
from benchmarks.common.results import Content
from benchmarks.ptq.settings import FULL
from benchmarks.trellis.goals import SPEED, TRELLIS, excess, gops, tokens

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
    schemes = dict.fromkeys(row["scheme"] for row in rows if "perplexity" in row and row["scheme"] != FULL)
    lines = []
    for scheme in schemes:
        name, _, rest = scheme.partition(" ")
        values = [excess(rows, scheme, algorithm) for algorithm in _ALGORITHMS]
        figures = ["-" if value is None else f"{value:.2f}" for value in values]
        bits = next(row["bits_per_weight"] for row in rows if "perplexity" in row and row["scheme"] == scheme)
        lines.append([f"`{name}` {rest}".strip(), f"{bits:.4g}", *figures])
    return table(("scheme", "bits per weight", *_ALGORITHMS), lines)
