"""What ``gpu/kernels.py`` is to reach, and its plot, from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.results import Goal, Row, at_least

LARGEST = "8192x28672"
COPY = 0.85  # of the bandwidth of a copy
AGAINST_CUBLAS = ((1, LARGEST, 3.2), (1, "11008x4096", 2.5), (1, "4096x4096", 1.8), (16, LARGEST, 2.0))
COLOURS = {"pot2": "#d62728", "pot3": "#2ca02c", "pot4": "#1f77b4", "int4": "#555555", "int4 magic": "#999999"}


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The figures this project set itself, in bfloat16; one whose rows are missing counts as missed."""
    timed = {_key(row): row for row in rows if row["dtype"] == "bfloat16" and "microseconds" in row}

    def faster(m: int, shape: str, contestant: str, other: str) -> float | None:
        ours, theirs = timed.get(("product", m, shape, contestant)), timed.get(("product", m, shape, other))
        return None if ours is None or theirs is None else float(theirs["microseconds"] / ours["microseconds"])

    found: list[tuple[str, float, float | None]] = []
    for name in ("pot2", "pot3", "pot4"):
        found.append((f"{name} dequantization, part of copy bandwidth, worst shape", COPY, _part(rows, name)))
    for m, shape, target in AGAINST_CUBLAS:
        found.append((f"m={m}, pot4, times faster than cuBLAS, {shape}", target, faster(m, shape, "pot4", "cuBLAS")))
    found.append((f"m=1, pot3, times faster than pot4, {LARGEST}", 1.0, faster(1, LARGEST, "pot3", "pot4")))
    return [at_least(*each) for each in found]


def _key(row: Row) -> tuple[str, int | None, str, str]:
    return row["work"], row.get("m"), row["shape"], row["contestant"]


def _part(rows: Sequence[Row], name: str) -> float | None:
    """The least part of the copy's bandwidth that dequantization of ``name`` reaches."""
    speeds = {
        (row["shape"], row["dtype"], row["contestant"]): row["GB/s"]
        for row in rows
        if row["work"] == "dequantize" and "GB/s" in row
    }
    parts = [speed / speeds[shape, dtype, "copy"] for (shape, dtype, who), speed in speeds.items() if who == name]
    return min(parts, default=None)


def draw(rows: Sequence[Row], path: Path) -> str:
    """How much faster than cuBLAS every product is, by rows of activations, one panel a shape; says where, or why not."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: pip install matplotlib"
    products = [row for row in rows if row["work"] == "product" and row["dtype"] == "bfloat16" and "microseconds" in row]
    shapes = list(dict.fromkeys(row["shape"] for row in products))
    if not shapes:
        return "no plot: no product was measured"
    figure = Figure(figsize=(4 * len(shapes), 4), layout="constrained")
    panels = figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0]
    for axes, shape in zip(panels, shapes, strict=True):
        here = [row for row in products if row["shape"] == shape]
        dense = {row["m"]: row["microseconds"] for row in here if row["contestant"] == "cuBLAS"}
        for who in dict.fromkeys(row["contestant"] for row in here):
            points = sorted((row["m"], dense[row["m"]] / row["microseconds"]) for row in here if row["contestant"] == who)
            axes.plot(*zip(*points, strict=True), marker="o", label=who, color=COLOURS.get(who))
        axes.set(xscale="log", title=shape, xlabel="rows of activations")
    panels[0].set_ylabel("times faster than cuBLAS, bfloat16")
    panels[-1].legend(fontsize=7)
    figure.savefig(path, dpi=130)
    return f"drawn: {path.name}"
