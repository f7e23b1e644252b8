"""README's picture, from committed results: perplexity against bits per weight, and tokens a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture
from benchmarks.common.results import ISAS
from benchmarks.decode.goals import SPEED
from benchmarks.decode.report import README_OURS, chosen, fastest_builds
from benchmarks.ptq.goals import STORIES, TABLE
from benchmarks.ptq.settings import full_precision

FAMILIES = {
    "power-of-two": ("#d62728", "o", ("pot2", "pot3s", "pot4")),
    "two powers of two": ("#1f77b4", "o", ("apot3s", "apot4")),
    "integers": ("#555555", "s", ("int2", "int3", "int4")),
    "integers with zero points": ("#999999", "s", ("int2_asym", "int3_asym", "int4_asym")),
    "NF4": ("#2ca02c", "D", ("nf4",)),
}
LINES = {"fast": ("--", "none"), "best": ("-", None)}
"""By effort: how a family's line is drawn, and what its markers are filled with (None: the family's colour)."""
PRESETS = {"pot2": (-7, -8), "pot3s": (-7, 4), "pot4": (-7, 4), "apot3s": (-7, -10), "apot4": (-7, -6)}
"""Those that are named, and where their names end, in points from the place."""
PROTOCOL = (
    "TinyStories-656K on TinyStories: linears quantized, 40 windows of 512 tokens\n"
    "dashed, hollow: rounded to nearest; solid, filled: calibrated (best)"
)


def draw(path: Path) -> str:
    """Draw to ``path``; says where, or why not."""
    return picture(path, (13, 5), _paint)


def _paint(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    _perplexities(left, TABLE.read()["rows"])
    _speeds(right)


def _perplexities(axes: Any, rows: Sequence[Row]) -> None:
    exact = full_precision(rows, STORIES)["perplexity"]
    found = {(row["scheme"], row["algorithm"]): row for row in rows if row["model"] == STORIES}
    for name, (colour, marker, schemes) in FAMILIES.items():
        for effort, (line, fill) in LINES.items():
            own = [found[scheme, effort] for scheme in schemes]
            points = [(row["bits_per_weight"], row["perplexity"] - exact) for row in own]
            style = {"color": colour, "ls": line, "marker": marker, "mfc": fill or colour, "ms": 6, "lw": 1.2}
            axes.plot(*zip(*points, strict=True), **style, label=name if effort == "best" else None)
            for scheme, point in zip(schemes, points, strict=True):
                if scheme in PRESETS and effort == "best":
                    place = {"xytext": PRESETS[scheme], "textcoords": "offset points", "ha": "right"}
                    axes.annotate(scheme, point, fontsize=8, color=colour, **place)
    axes.set(yscale="log", xlabel="bits per weight, scales included", xlim=(2, 4.5))
    axes.set_ylabel(f"perplexity above full precision's {exact:.2f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(PROTOCOL, fontsize=9)
    axes.grid(True, which="both", alpha=0.15)
    axes.legend(fontsize=8)


def _speeds(axes: Any) -> None:
    """A bar for each contestant and kind of machine."""
    found = fastest_builds()
    names, kinds = chosen(found), list(SPEED.by_kind())
    height = 0.8 / len(kinds)
    for index, kind in enumerate(kinds):
        places = [place + (index - (len(kinds) - 1) / 2) * height for place in range(len(names))]
        speeds = [found[name].get((kind, "decode"), 0.0) for name in names]
        colours = ["#d62728" if name in README_OURS else "#999999" for name in names]
        bars = axes.barh(places, speeds, height * 0.92, color=colours, alpha=1 - 0.45 * index)
        labels = [
            f"{speed:.0f}" + (f" ({ISAS.get(kind, kind)})" if len(kinds) > 1 else "") if speed else "" for speed in speeds
        ]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.14 * len(kinds))
    machines = " and ".join(ISAS.get(kind, kind) for kind in kinds)
    axes.set_title(f"SmolLM2-135M, one sequence, two threads, {machines}", fontsize=9)
    axes.set_xlabel("decoded tokens a second")
    axes.grid(True, axis="x", alpha=0.2)
