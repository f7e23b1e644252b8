"""The picture of ``decode/speed.py``: tokens per second against perplexity, decoding and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.results import Row
from benchmarks.decode.goals import medians

KINDS = {"potq": ("#d62728", "o"), "llama.cpp native": ("#ff7f0e", "s"), "llama.cpp": ("#ffbb78", "D")}
WORST = 200  # perplexity: beyond it a point stands at the edge


def draw(rows: Sequence[Row], path: Path) -> str:
    """Draw to ``path``; says where, or why not."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: pip install matplotlib"
    quality = {row["name"]: row["perplexity"] for row in rows if row["what"] == "perplexity"}
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("decode", "prefill"), strict=True):
        axes.set(title=what, xlabel="perplexity of the very files, WikiText-2", ylabel="tokens/s, two threads", xscale="log")
        _panel(axes, medians(rows, what), quality)
        axes.set_ylim(bottom=0)
    figure.axes[0].legend(loc="center right")
    figure.savefig(path, dpi=130)
    return f"drawn: {path.name}"


def _panel(axes: Any, speeds: dict[str, float], quality: dict[str, float]) -> None:
    labelled = set()
    for name, speed in speeds.items():
        kind = next((each for each in KINDS if name.startswith(each)), None)
        same_file = quality.get(name, quality.get(name.replace(" native", "")))
        if kind is None or same_file is None:
            continue
        colour, marker = KINDS[kind]
        label = None if kind in labelled else kind
        labelled.add(kind)
        x, text = same_file, name.removeprefix(kind)
        if x > WORST:
            x, text = WORST, f"{text} (at {x:,.0f})"
        axes.scatter(x, speed, color=colour, marker=marker, s=40, label=label)
        if kind != "llama.cpp":  # the same files as the native build's
            axes.annotate(text, (x, speed), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axes.set_xticks((25, 30, 40, 60, 100, WORST), ("25", "30", "40", "60", "100", f"≥ {WORST}"), minor=False)
    axes.set_xlim(22, 1.45 * WORST)
    axes.minorticks_off()
    axes.grid(True, which="both", alpha=0.15)
