"""The frontiers of both models, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture
from benchmarks.hardware.frontier import WINDOWS
from potq.hardware.gates.frontier import Circuit, Point
from potq.hardware.report import paint

BROKEN = 20
"""Times full precision's perplexity: from there on a model is broken, and is not drawn."""


def draw(rows: Sequence[Row], path: Path) -> str:
    """Draw to ``path``; says where, or why not."""
    return picture(path, (15, 9), lambda figure: _paint(figure, rows), dpi=70)


def _paint(figure: Any, rows: Sequence[Row]) -> None:
    models = [model for model in WINDOWS if any(row["model"] == model for row in rows)]
    for axes, model in zip(figure.subplots(len(models), 3, sharey="row", squeeze=False), models, strict=True):
        full, *others = [row for row in rows if row["model"] == model]
        useful = [row for row in others if row["perplexity"] < BROKEN * full["perplexity"]]
        paint(axes, full["perplexity"], [point_of(row) for row in useful])
        axes[1].set_title(model)


def point_of(row: Row) -> Point:
    """A row of the results file as what it was made from."""
    fields = {name: value for name, value in row.items() if name not in ("model", "circuit", "best")}
    return Point(**fields, circuit=Circuit(**row["circuit"]), best=tuple(row["best"]))
