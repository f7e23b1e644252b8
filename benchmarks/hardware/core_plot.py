"""The picture of ``hardware/cores.py``, from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture
from benchmarks.hardware.core_goals import SHAPE

COLOURS = {"pot": "#1f77b4", "int": "#555555", "apot": "#2ca02c"}
_ROWS = 2  # of panels


def draw(rows: Sequence[Row], path: Path) -> str:
    """Cycles of a weight by the fastest kernel of every scheme, one panel a core; says where, or why not."""
    kernels = [row for row in rows if row["shape"] == SHAPE]
    cores = list(dict.fromkeys(row["core"] for row in kernels))
    if not cores:
        return "no plot: no kernel was measured"
    return picture(path, (3.2 * -(-len(cores) // _ROWS), 3.4 * _ROWS), lambda figure: _paint(figure, kernels, cores))


def _paint(figure: Any, kernels: Sequence[Row], cores: Sequence[str]) -> None:
    panels = figure.subplots(_ROWS, -(-len(cores) // _ROWS), squeeze=False).ravel()
    for axes in panels[len(cores) :]:
        axes.set_axis_off()
    for axes, core in zip(panels, cores, strict=False):
        fastest: dict[str, float] = {}
        unit = ""
        for row in kernels:
            if row["core"] == core and " " not in row["scheme"]:  # scales are powers of two, alike for all
                fastest[row["scheme"]] = min(fastest.get(row["scheme"], row["per_weight"]), row["per_weight"])
                unit = row["unit"]
        axes.bar(list(fastest), list(fastest.values()), color=[COLOURS[name.rstrip("0123456789")] for name in fastest])
        axes.set_title(core, fontsize=8)
        axes.set_ylabel(f"{unit} of a weight", fontsize=7)
        axes.tick_params(axis="x", rotation=60, labelsize=7)
        axes.tick_params(axis="y", labelsize=7)
