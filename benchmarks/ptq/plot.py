"""The picture of ``ptq/table.py``: excess perplexity against bits per weight, a panel a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture
from benchmarks.ptq.settings import ABSMAX, FULL, INTEGERS, PURE, TWO_TERM, full_precision

FAMILIES = {
    "pure PoT": ("#d62728", {name for names in PURE.values() for name in names} | {"pot2z"}),
    "2-term PoT": ("#1f77b4", {name for names in TWO_TERM.values() for name in names}),
    "integers": ("#555555", {name for names in INTEGERS.values() for name in names}),
}
OTHERS = ("other tables", "#2ca02c")
PEER = ("peers", "#ff7f0e")
MARKERS = {"fast": "v", "gptq": "s", "balanced": "D", "best": "o", "peer": "x"}
SPREAD = {"fast": -0.045, "gptq": -0.015, "balanced": 0.015, "best": 0.045}  # bits, to be seen apart
LIMIT = 1000.0  # an excess beyond which a model is noise
CAPTION = (
    "Linears quantized, embedding and head in full precision. Bits per weight count scales and zero-points.\nExcess over "
    "1000 is drawn at the top edge. Named are the peers that no other peer beats with as few bits."
)


def draw(rows: Sequence[Row], path: Path) -> str:
    """Draw to ``path``; says where, or why not."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    return picture(path, (8 * len(models), 7), lambda figure: _paint(figure, rows, models))


def _paint(figure: Any, rows: Sequence[Row], models: Sequence[str]) -> None:
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        _panel(axes, [row for row in rows if row["model"] == model], full_precision(rows, model)["perplexity"])
        axes.set_title(model)
    _legends(figure.axes[0])
    figure.supxlabel(CAPTION, fontsize=8, color="#444444")


def family(row: Row) -> tuple[str, str]:
    """Name and colour of what a row is counted as."""
    if row["algorithm"] == "peer":
        return PEER
    base = row["scheme"].split(" g32")[0].removesuffix(ABSMAX)
    return next(((name, colour) for name, (colour, schemes) in FAMILIES.items() if base in schemes), OTHERS)


def _panel(axes: Any, rows: list[Row], exact: float) -> None:
    axes.set(yscale="log", xlabel="bits per weight", ylabel=f"perplexity above full precision's {exact:.2f}")
    peers = [row for row in rows if row["algorithm"] == "peer"]
    for row in rows:
        if row["scheme"] == FULL:
            continue
        excess = min(max(row["perplexity"] - exact, 1e-2), LIMIT)
        x = row["bits_per_weight"] + SPREAD.get(row["algorithm"], 0.0)
        axes.scatter(x, excess, marker=MARKERS[row["algorithm"]], s=34, color=family(row)[1], alpha=0.75)
        if row in peers and not any(_beats(other, row) for other in peers):
            axes.annotate(row["scheme"], (x, excess), fontsize=6, color="#444444", xytext=(4, 2), textcoords="offset points")
    axes.grid(True, which="both", alpha=0.15)


def _beats(one: Row, other: Row) -> bool:
    return bool(one["bits_per_weight"] <= other["bits_per_weight"] and one["perplexity"] < other["perplexity"])


def _legends(axes: Any) -> None:
    from matplotlib.lines import Line2D

    colours = {**{name: colour for name, (colour, _) in FAMILIES.items()}, OTHERS[0]: OTHERS[1], PEER[0]: PEER[1]}
    grids = [Line2D([], [], ls="", marker="o", color=colour, label=name) for name, colour in colours.items()]
    steps = [Line2D([], [], ls="", marker=marker, color="black", label=name) for name, marker in MARKERS.items()]
    axes.add_artist(axes.legend(handles=grids, loc="upper right", title="grid"))
    axes.legend(handles=steps, loc="lower left", title="algorithm")
