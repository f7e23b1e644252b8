"""A frontier as a table, as Markdown, JSON and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potq.errors import DataError
from potq.evaluate.compare import Row
from potq.evaluate.outputs import check_plot
from potq.hardware.gates.frontier import COSTS, Point
from potq.nn.report import markdown_table

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = ("scheme", "activations", "perplexity", "area", "scaling", "toggles", "bytes", "delay", "on the frontier of")
"""Areas in square micrometres and toggles are those of one product a cycle; bytes of a weight; delay in nanoseconds."""
_AXES = {"area": "area of a product a cycle, square micrometres", "toggles": "toggles a product", "bytes": "bytes a weight"}


def to_dict(base: Row, points: Sequence[Point]) -> dict[str, Any]:
    """For JSON."""
    return {"full_precision": base.perplexity, "points": [asdict(point) for point in points]}


def cells(points: Sequence[Point]) -> list[list[str]]:
    """The points in words, under :data:`HEADINGS`."""
    return [
        [
            point.scheme,
            f"int{point.activation_bits}",
            f"{point.perplexity:.2f}" if point.perplexity < 1000 else f"{point.perplexity:.3g}",
            f"{point.circuit.dot:.0f}",
            f"{point.circuit.scaling:.0f}",
            f"{point.circuit.toggles:.1f}",
            f"{point.bytes:.3f}",
            f"{point.circuit.delay:.1f}",
            ", ".join(point.best),
        ]
        for point in points
    ]


def markdown(points: Sequence[Point]) -> str:
    """The table in Markdown."""
    return markdown_table(HEADINGS, cells(points))


def table(points: Sequence[Point]) -> Table:
    """The table for a terminal."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE)
    for heading in HEADINGS:
        result.add_column(heading, justify="left" if heading in (HEADINGS[0], HEADINGS[-1]) else "right")
    for row in cells(points):
        result.add_row(*row)
    return result


def plot(base: Row, points: Sequence[Point], path: Path, title: str) -> None:
    """Perplexity over area, toggles and bytes, side by side, with the frontier as a line.

    Raises:
        MissingDependencyError, DataError: see :func:`potq.evaluate.outputs.check_plot`; or ``path`` cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    paint(figure.subplots(1, 3, sharey=True), base.perplexity, points)
    figure.suptitle(title, fontsize=9)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write the plot {path} ({error})") from None


def paint(every_axes: Sequence[Any], full_precision: float, points: Sequence[Point]) -> None:
    """Draw the frontiers of the three costs on three of matplotlib's axes."""
    for axes, cost in zip(every_axes, COSTS, strict=True):
        axes.axhline(full_precision, color="black", linestyle="--", linewidth=1)
        line = sorted((point.cost(cost), point.perplexity) for point in points if cost in point.best)
        axes.step(*zip(*line, strict=True), where="post", linewidth=1, color="tab:blue")
        for point in points:
            at, marker = (point.cost(cost), point.perplexity), "o" if point.activation_bits == 8 else "s"
            axes.plot(*at, marker, color="tab:blue" if cost in point.best else "tab:gray")
            label = point.scheme + ("" if point.activation_bits == 8 else f" a{point.activation_bits}")
            axes.annotate(label, at, xytext=(5, 3), textcoords="offset points", fontsize=7)
        axes.set(xlabel=_AXES[cost], yscale="log")
        axes.margins(x=0.15)
    every_axes[0].set_ylabel("perplexity")
    every_axes[0].yaxis.set_major_formatter("{x:g}")
    every_axes[0].yaxis.set_minor_formatter("{x:g}")
