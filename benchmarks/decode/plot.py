"""The picture of ``decode/speed.py``: tokens per second against perplexity, decoding and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture
from benchmarks.decode.goals import medians
from benchmarks.decode.quality import quality

KINDS = {
    "potq": ("#d62728", "o"),
    "llama.cpp native": ("#ff7f0e", "s"),
    "llama.cpp": ("#ffbb78", "D"),
    "ik_llama.cpp": ("#8c564b", "^"),
}
WORST = 200  # perplexity: beyond it a point stands at the edge
TICKS = (25, 30, 40, 60, 100)


def draw(rows: Sequence[Row], path: Path) -> str:
    """Draw to ``path``; says where, or why not."""
    return picture(path, (13, 5.5), lambda figure: _paint(figure, rows))


def _paint(figure: Any, rows: Sequence[Row]) -> None:
    for axes, what in zip(figure.subplots(1, 2), ("decode", "prefill"), strict=True):
        panel(axes, medians(rows, what))
        axes.set_title(what)
    figure.axes[0].legend(loc="lower right", title="filled: rounded, as timed; hollow: calibrated")


def panel(axes: Any, speeds: dict[str, float]) -> None:
    """Ours and llama.cpp's files, speed over perplexity."""
    labelled = set()
    for name, speed in speeds.items():
        kind = next((each for each in KINDS if name.startswith(each)), None)
        if kind is None:
            continue
        label = None if kind in labelled else kind
        labelled.add(kind)
        same_files = kind in ("llama.cpp", "ik_llama.cpp")  # as the native build's, which are named
        found, words = quality(name), "" if same_files else name.removeprefix(kind)
        for perplexity, filled in ((found.rounded, True), (found.calibrated, False)):
            if perplexity is not None:
                _point(axes, kind, (perplexity, speed), words, filled, label)
                label, words = None, ""
    axes.set(xlabel="perplexity of the file, WikiText-2", ylabel="tokens/s, two threads", xscale="log", ylim=(0, None))
    axes.set_xticks((*TICKS, WORST), (*map(str, TICKS), f"≥ {WORST}"), minor=False)
    axes.set_xlim(22, 1.45 * WORST)
    axes.minorticks_off()
    axes.grid(True, which="both", alpha=0.15)


def _point(axes: Any, kind: str, at: tuple[float, float], words: str, filled: bool, label: str | None) -> None:
    colour, marker = KINDS[kind]
    x, speed = min(at[0], WORST), at[1]
    face = colour if filled else "none"
    axes.scatter(x, speed, edgecolors=colour, facecolors=face, marker=marker, s=40, label=label)
    if words:
        beyond = f" ({at[0]:,.0f})" if at[0] > WORST else ""
        side = {"xytext": (-6, 5), "ha": "right"} if beyond else {"xytext": (4, 3)}
        axes.annotate(words + beyond, (x, speed), fontsize=7, textcoords="offset points", **side)
