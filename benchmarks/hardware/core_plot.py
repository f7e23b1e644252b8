"""The picture of ``hardware/cores.py``, from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture
from benchmarks.hardware.core_goals import SHAPE

COLOURS = {"pot": "#1f77b4", "int": "#555555", "apot": "#2ca02c"}


def draw(rows: Sequence[Row], path: Path) -> str:
    """Cycles of a weight by the fastest kernel of every scheme, one panel a core; says where, or why not."""
    kernels = [row for row in rows if row["shape"] == SHAPE]
    cores = list(dict.fromkeys(row["core"] for row in kernels))
    if not cores:
        return "no plot: no kernel was measured"
    return picture(path, (4 * len(cores), 4), lambda figure: _paint(figure, kernels, cores))


def _paint(figure: Any, kernels: Sequence[Row], cores: Sequence[str]) -> None:
    panels = figure.subplots(1, len(cores), sharey=True, squeeze=False)[0]
    for axes, core in zip(panels, cores, strict=True):
        fastest: dict[str, float] = {}
        for row in kernels:
            if row["core"] == core and " " not in row["scheme"]:  # scales are powers of two, alike for all
                found = fastest.get(row["scheme"], row["cycles_per_weight"])
                fastest[row["scheme"]] = min(found, row["cycles_per_weight"])
        colours = [COLOURS[name.rstrip("0123456789")] for name in fastest]
        axes.bar(list(fastest), list(fastest.values()), color=colours)
        axes.set_title(core, fontsize=8)
        axes.tick_params(axis="x", rotation=60)
    panels[0].set_ylabel("cycles of a weight, fastest kernel")
