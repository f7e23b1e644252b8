"""The picture of ``serve/measure.py``: tokens per second of all texts, by how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture
from benchmarks.serve.goals import SHAPES_1B, SMOLLM2, TEXTS, decoded

COLOURS = {"potq": ("#d62728", "#e377c2"), "llama.cpp": ("#ff7f0e", "#ffbb78")}


def draw(rows: Sequence[Row], path: Path) -> str:
    """Draw to ``path``; says where, or why not."""
    return picture(path, (11, 4.5), lambda figure: _paint(figure, rows))


def _paint(figure: Any, rows: Sequence[Row]) -> None:
    for axes, model in zip(figure.subplots(1, 2), (SMOLLM2, SHAPES_1B), strict=True):
        for name, points in lines(rows, model).items():
            whose = next(each for each in COLOURS if name.startswith(each))
            colour = COLOURS[whose][sum(line.get_label().startswith(whose) for line in axes.lines)]
            texts, speeds = zip(*points.items(), strict=True)
            axes.plot(texts, [median(each) for each in speeds], marker="o", color=colour, label=name)
            axes.fill_between(
                texts, [min(each) for each in speeds], [max(each) for each in speeds], color=colour, alpha=0.15
            )
        axes.set(title=model, xlabel="texts at once", ylabel="tokens/s of all texts", ylim=(0, None), xticks=TEXTS)
        axes.grid(True, alpha=0.15)
        axes.legend(loc="upper left")


def lines(rows: Sequence[Row], model: str) -> dict[str, dict[int, list[float]]]:
    """Tokens per second by contestant and number of texts, round by round."""
    found: dict[str, dict[int, list[float]]] = {}
    for texts in TEXTS:
        for name, speeds in decoded(rows, model, texts).items():
            found.setdefault(name, {})[texts] = speeds
    return found
