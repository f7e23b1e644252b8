"""The roofline of ``kernels/cpu.py``: every shape and m on it, ours and the best 4-bit peer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture
from benchmarks.kernels.rows import EVERY, WIDTH_576, WIDTH_768, WIDTH_4096, Results

COLOURS = {"pot4": "#1f77b4", "pot3": "#2ca02c", "pot2": "#d62728", "4-bit": "#555555"}
LABELS = {"pot4": "potq, 4 bits", "pot3": "potq, 3 bits", "pot2": "potq, 2 bits", "4-bit": "best 4-bit peer"}
MARKERS = {
    "768-wide (GPT-2)": ("o", WIDTH_768[:-1]),
    "576-wide (SmolLM2)": ("s", WIDTH_576[:-1]),
    "4096-wide (Llama 7B)": ("^", WIDTH_4096),
    "vocabulary heads": ("D", (WIDTH_768[-1], WIDTH_576[-1])),
}
SPREAD = 0.018  # of a decade, between neighbouring shapes: all weights of one width in bits have one intensity
CAPTION = (
    "A point is one shape and one m (1, 4, 16, 128 from left to right), on two threads, weights cold. Operations are "
    "2 m out in, bytes those of the\npacked weight, scales included. Within a cluster shapes stand side by side, to be seen "
    "apart. The roofs were measured in the same run."
)


def draw(rows: Sequence[Row], path: Path) -> str:
    """Draw to ``path``; says where, or why not."""
    results = Results(rows)
    if not any("pot4" in results.timed(cell) for cell in results.cells):
        return "no plot: our kernels were not measured"
    peak = next((row["gops"] for row in rows if row.get("task") == "int8 peak"), None)
    return picture(path, (12, 8), lambda figure: _paint(figure, results, peak))


def _paint(figure: Any, results: Results, peak: float | None) -> None:
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="operations per byte of packed weight", ylabel="GOP/s")
    _points(axes, results)
    _roofs(axes, results, peak)
    axes.grid(True, which="both", alpha=0.15)
    axes.set_title("Products with packed weights: measured speed under the roofs of memory and int8 arithmetic")
    _legends(axes)
    figure.supxlabel(CAPTION, fontsize=8, color="#444444")


def _points(axes: Any, results: Results) -> None:
    for (shape, m), _ in results.cells.items():
        if shape not in EVERY:
            continue
        marker = next(marker for marker, shapes in MARKERS.values() if shape in shapes)
        spread = 10 ** (SPREAD * (EVERY.index(shape) - len(EVERY) / 2) / 2)
        for key, colour in COLOURS.items():
            row = results.best((shape, m), key) if key == "4-bit" else results.timed((shape, m)).get(key)
            if row is not None:
                peer = key == "4-bit"
                intensity = 2 * m * 8 / row["bits_per_weight"] * spread
                style = {"facecolors": "none"} if peer else {"alpha": 0.8}
                axes.scatter(
                    intensity, row["gops"], marker=marker, s=34, edgecolors=colour, color=None if peer else colour, **style
                )


def _roofs(axes: Any, results: Results, peak: float | None) -> None:
    cold = [reads for cell in results.cells if cell[1] <= 16 and (reads := results.reads(cell))]
    bandwidth = statistics.median(statistics.median(reads) for reads in cold) if cold else None
    low, high = axes.get_xlim()
    if bandwidth:
        end = min(high, peak / bandwidth) if peak else high
        axes.plot([low, end], [low * bandwidth, end * bandwidth], color="black", lw=1.4)
        middle = (low * end) ** 0.5
        where = {"xytext": (-10, 2), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"memory read, {bandwidth:.0f} GB/s", (middle, middle * bandwidth), fontsize=9, **where)
    if peak:
        start = peak / bandwidth if bandwidth else low
        axes.plot([start, high], [peak, peak], color="black", lw=1.4)
        axes.annotate(f"int8 multiply-adds, {peak:.0f} GOP/s", (high, peak * 1.05), ha="right", fontsize=9)
    axes.set_xlim(low, high)


def _legends(axes: Any) -> None:
    from matplotlib.lines import Line2D

    def handle(label: str, marker: str, colour: str, filled: bool) -> Any:
        face = colour if filled else "none"
        return Line2D([], [], ls="", marker=marker, color=colour, markerfacecolor=face, markeredgecolor=colour, label=label)

    schemes = [handle(LABELS[key], "o", colour, key != "4-bit") for key, colour in COLOURS.items()]
    shapes = [handle(label, marker, "black", False) for label, (marker, _) in MARKERS.items()]
    axes.add_artist(axes.legend(handles=schemes, loc="upper left", title="contestant"))
    axes.legend(handles=shapes, loc="lower right", title="shape")
