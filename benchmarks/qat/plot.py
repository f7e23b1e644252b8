"""Pictures of quantization-aware training: perplexity before and after, and what a step costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture
from benchmarks.qat.goals import STEP_GOALS

FULL, AS_IT_IS, ON_DATA = "none", "as it is", "trained on next tokens"
STATES = {
    "rounded to nearest": ("#999999", "v"),
    "best post-training": ("#1f77b4", "D"),
    "distilled": ("#d62728", "o"),
    ON_DATA: ("#ff7f0e", "s"),
}

Points = Mapping[tuple[str, str], Sequence[float]]
"""Perplexities, a seed each, by scheme and by what was done to the model."""


def draw_recovery(panels: Mapping[str, Points], path: Path) -> str:
    """Perplexity before and after training, a panel a model; says where it is drawn, or why not."""
    return picture(path, (6.5 * len(panels), 5.5), lambda figure: _paint_recovery(figure, panels))


def _paint_recovery(figure: Any, panels: Mapping[str, Points]) -> None:
    for axes, (model, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _recovery(axes, points)
        axes.set_title(model)
    figure.axes[0].legend(fontsize=8)


def _recovery(axes: Any, points: Points) -> None:
    for state, line in ((AS_IT_IS, "-"), (ON_DATA, "--")):
        if (FULL, state) in points:
            axes.axhline(
                statistics.mean(points[FULL, state]), color="black", ls=line, lw=1, label=f"full precision, {state}"
            )
    schemes = list(dict.fromkeys(scheme for scheme, _ in points if scheme != FULL))
    for index, (state, (colour, marker)) in enumerate(STATES.items()):
        places = [(at, value) for at, scheme in enumerate(schemes) for value in points.get((scheme, state), ())]
        if places:
            xs, values = zip(*places, strict=True)
            axes.scatter([x + 0.12 * (index - 1.5) for x in xs], values, color=colour, marker=marker, s=40, label=state)
    axes.set(yscale="log", ylabel="perplexity", xticks=range(len(schemes)), xticklabels=schemes)
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.set_xlim(-0.6, len(schemes) - 0.4)
    axes.grid(True, axis="y", which="both", alpha=0.2)


def draw_steps(rows: Sequence[Row], path: Path) -> str:
    """Time and memory of a step over full precision's, a panel each; says where it is drawn, or why not."""
    return picture(path, (13, 4.5), lambda figure: _paint_steps(figure, rows))


def _paint_steps(figure: Any, rows: Sequence[Row]) -> None:
    kinds = list(dict.fromkeys((row["model"], row["dtype"]) for row in rows))
    cells = list(dict.fromkeys((row["scheme"], row["scales"]) for row in rows))
    for axes, (what, goal) in zip(figure.subplots(1, 2), STEP_GOALS.items(), strict=True):
        for index, (model, dtype) in enumerate(kinds):
            own = [row for row in rows if (row["model"], row["dtype"]) == (model, dtype)]
            places = [cells.index((row["scheme"], row["scales"])) + 0.2 * (index - (len(kinds) - 1) / 2) for row in own]
            axes.bar(places, [row[f"{what}_ratio"] - 1 for row in own], 0.18, bottom=1, label=f"{model}, {dtype}")
        axes.axhline(goal, color="black", ls="--", lw=1, label=f"goal: {goal}")
        axes.set_xticks(range(len(cells)), ["\n".join(cell) for cell in cells])
        axes.set_ylabel(f"{what} of a step / full precision's")
        axes.grid(True, axis="y", alpha=0.2)
    figure.axes[0].legend(fontsize=8)
