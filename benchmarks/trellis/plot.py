"""The picture of docs/trellis.md: the states as they follow each other, and the path of a row, by the package's own code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import potq
from benchmarks.common.plots import picture
from potq.numerics.trellis import STATES, best_path, predecessors, state_before, subsets

WEIGHTS = 10  # of the row that is drawn
SEED = 3
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd")  # of the subsets
_SCHEME = "pot2t"


def draw(path: Path) -> str:
    """Draw to ``path``; says where, or why not."""
    return picture(path, (11, 5), _paint, dpi=110)


def ways() -> Iterator[tuple[int, int, int]]:
    """Every way: the state that it leaves, that it enters, and the subset whose levels a weight can take on it."""
    before, subset = predecessors(torch.device("cpu")), subsets(torch.device("cpu"))
    for after in range(STATES):
        yield from ((int(before[way, after]), after, int(subset[way, after])) for way in range(2))


def row() -> tuple[Tensor, Tensor, list[int]]:
    """Weights of a row, the levels that stand for them, and the states that their path goes through, one more."""
    levels = torch.tensor(sorted(potq.QuantScheme(_SCHEME).grid.levels), dtype=torch.float32)
    weight = 3 * torch.randn(1, WEIGHTS, generator=torch.Generator().manual_seed(SEED))
    index, _ = best_path(weight, torch.ones_like(weight), levels)
    states = [int(state_before(index, column)) for column in range(WEIGHTS)]
    last = next(after for before, after, subset in ways() if (before, subset) == (states[-1], int(index[0, -1]) & 3))
    return weight[0], levels[index[0].int()], [*states, last]


def _paint(figure: Any) -> None:
    axes = figure.subplots()
    weight, chosen, states = row()
    taken = set(zip(range(WEIGHTS), states, states[1:], strict=False))
    for column in range(WEIGHTS):
        for before, after, subset in ways():
            on_path = (column, before, after) in taken
            style = {"lw": 3.0, "alpha": 1.0} if on_path else {"lw": 0.8, "alpha": 0.5}
            axes.plot((column, column + 1), (before, after), color=COLOURS[subset], **style)
        axes.text(column + 0.5, -0.75, f"{weight[column]:.1f}", ha="center")
        axes.text(column + 0.5, -1.25, f"{chosen[column]:g}", ha="center", weight="bold")
    axes.plot(range(WEIGHTS + 1), states, "o", color="black", ms=7)
    axes.text(-0.15, -0.75, "weight / scale", ha="right")
    axes.text(-0.15, -1.25, "level", ha="right", weight="bold")
    _label(axes)


def _label(axes: Any) -> None:
    levels = sorted(potq.QuantScheme(_SCHEME).grid.levels)
    for subset, colour in enumerate(COLOURS):
        axes.plot(
            (), (), color=colour, lw=3, label=f"subset {subset}: " + " or ".join(f"{level:g}" for level in levels[subset::4])
        )
    axes.set_yticks(range(STATES), [f"{state & 1}, {state >> 1 & 1}, {state >> 2}" for state in range(STATES)])
    axes.set(ylim=(STATES - 0.5, -1.6), xlim=(-0.2, WEIGHTS + 0.2), xticks=[])
    axes.set_ylabel("state: the bits of the path behind, the last one first")
    axes.spines[:].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(COLOURS), frameon=False)
