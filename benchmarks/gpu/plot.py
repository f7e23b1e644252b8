"""The picture of ``gpu/kernels.py``, from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture

COLOURS = {"pot2": "#d62728", "pot3": "#2ca02c", "pot4": "#1f77b4", "int4": "#555555", "int4 magic": "#999999"}


def draw(rows: Sequence[Row], path: Path) -> str:
    """How much faster than cuBLAS every product is, by rows of activations, one panel a shape; says where, or why not."""
    products = [row for row in rows if row["work"] == "product" and row["dtype"] == "bfloat16" and "microseconds" in row]
    shapes = list(dict.fromkeys(row["shape"] for row in products))
    if not shapes:
        return "no plot: no product was measured"
    return picture(path, (4 * len(shapes), 4), lambda figure: _paint(figure, products, shapes))


def _paint(figure: Any, products: Sequence[Row], shapes: Sequence[str]) -> None:
    panels = figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0]
    for axes, shape in zip(panels, shapes, strict=True):
        here = [row for row in products if row["shape"] == shape]
        dense = {row["m"]: row["microseconds"] for row in here if row["contestant"] == "cuBLAS"}
        for who in dict.fromkeys(row["contestant"] for row in here):
            points = sorted(
                (row["m"], dense[row["m"]] / row["microseconds"])
                for row in here
                if row["contestant"] == who and row["m"] in dense
            )
            axes.plot(*zip(*points, strict=True), marker="o", label=who, color=COLOURS.get(who))
        axes.set(xscale="log", title=shape, xlabel="rows of activations")
    panels[0].set_ylabel("times faster than cuBLAS, bfloat16")
    panels[-1].legend(fontsize=7)
