"""What ``qat/nanogpt.py`` says of its rows: a table, a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.goals import Row
from benchmarks.common.plots import picture
from benchmarks.qat.goals import FULL, chosen, excess

COLOURS = {"PoT": "#d62728", "integers": "#555555", "mid-rise integers": "#1f77b4"}
STYLES = {"PTQ": ("--", "v"), "QAT": ("-", "o")}


HEADINGS = ("kind", "family", "scales", "tables", "2 bits", "3", "4", "5", "6")


def show(rows: Sequence[Row]) -> None:
    full = [row["loss"] for row in rows if row["kind"] == FULL]
    table = Table(title=f"Nats above fp32's {statistics.mean(full):.4f} (mean over seeds, standard deviation)")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading[0].isdigit() else "left")
    for line in lines(rows):
        table.add_row(*line)
    Console(width=140).print(table)


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """Under ``HEADINGS``, a line for everything that was done to the model."""
    found = []
    rounded = [row for row in rows if row["kind"] != FULL]
    for kind, family, group, tables in dict.fromkeys((r["kind"], r["family"], r["group"], r["tables"]) for r in rounded):
        key = {"kind": kind, "family": family, "group": group, "tables": tables}
        figures = (_figure(excess(rows, **key, bits=bits)) for bits in range(2, 7))
        found.append([kind, family, str(group), "same" if tables else "float32", *figures])
    return found


def _figure(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:+.4f}" if values else ""
    return f"{statistics.mean(values):+.4f} ±{statistics.stdev(values):.4f}"


def draw(rows: Sequence[Row], path: Path) -> str:
    """Draw to ``path``; says where, or why not."""
    groups = list(dict.fromkeys(row["group"] for row in rows if row["kind"] != FULL))
    return picture(path, (4.2 * len(groups), 8), lambda figure: _paint(figure, rows, groups))


def _paint(figure: Any, rows: Sequence[Row], groups: Sequence[Any]) -> None:
    panels = figure.subplots(2, len(groups), squeeze=False, sharex=True, sharey="row")
    for column, group in enumerate(groups):
        for axes in panels[:, column]:
            _panel(axes, rows, group)
        _second_axis(panels[0][column], "a scale per tensor" if group == "tensor" else f"a scale per {_words(group)}")
        _zoom(panels[1][column], rows)
    for axes, part in zip(panels[:, 0], ("all", "near fp32"), strict=True):
        axes.set_ylabel(f"validation loss, nats a character ({part})")
    panels[0][0].legend(fontsize=8)
    figure.suptitle("Nano-GPT on Shakespeare's characters: linears and embedding tables quantized; bars: 3 seeds' deviation")


def _words(group: Any) -> str:
    return "row" if group == "row" else f"group of {group}"


def _panel(axes: Any, rows: Sequence[Row], group: Any) -> None:
    full = [row["loss"] for row in rows if row["kind"] == FULL]
    axes.axhline(statistics.mean(full), color="black", lw=1, label="fp32, as many steps")
    for kind, (line, marker) in STYLES.items():
        for index, (family, colour) in enumerate(COLOURS.items()):
            points = _points(chosen(rows, kind=kind, family=family, group=group, tables=True))
            if points:
                bits, means, deviations = zip(*points, strict=True)
                at = [bit + 0.06 * (index - 1) for bit in bits]
                style = {"color": colour, "ls": line, "marker": marker, "ms": 5, "capsize": 3, "lw": 1.2}
                axes.errorbar(at, means, deviations, label=f"{kind}, {family}", **style)
    axes.grid(True, alpha=0.2)


def _points(rows: Sequence[Row]) -> list[tuple[int, float, float]]:
    """Bits, mean loss, its standard deviation over seeds."""
    found = []
    for bits in sorted({row["bits"] for row in rows}):
        losses = [row["loss"] for row in rows if row["bits"] == bits]
        found.append((bits, statistics.mean(losses), statistics.stdev(losses) if len(losses) > 1 else 0.0))
    return found


def _second_axis(axes: Any, title: str) -> None:
    """The papers' way to count: exponents alone."""
    upper = axes.secondary_xaxis("top", functions=(lambda bits: bits - 1, lambda bits: bits + 1))
    upper.set_xlabel(f"{title}\nbits without the sign", fontsize=9)
    upper.set_xticks(range(1, 6))


def _zoom(axes: Any, rows: Sequence[Row]) -> None:
    full = statistics.mean(row["loss"] for row in rows if row["kind"] == FULL)
    axes.set(ylim=(full - 0.03, full + 0.3), xlabel="bits of a code, sign included", xticks=range(2, 7))
