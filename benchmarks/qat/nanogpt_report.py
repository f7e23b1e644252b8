"""What ``qat/nanogpt.py`` says of its rows: goals, a table, a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.results import Goal, Row, at_most

FULL = "fp32"
TARGETS = {4: 0.03, 3: 0.06, 2: 0.15}
COLOURS = {"PoT": "#d62728", "integers": "#555555", "mid-rise integers": "#1f77b4"}
STYLES = {"PTQ": ("--", "v"), "QAT": ("-", "o")}
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile by number of seeds

Key = dict[str, Any]


def chosen(rows: Sequence[Row], **key: Any) -> list[Row]:
    return [row for row in rows if key.items() <= row.items()]


def excess(rows: Sequence[Row], **key: Any) -> list[float]:
    """Loss above full precision's of the same seed, a seed each."""
    full = {row["seed"]: row["loss"] for row in rows if row["kind"] == FULL}
    return [row["loss"] - full[row["seed"]] for row in chosen(rows, **key)]


def interval(values: Sequence[float]) -> list[float]:
    """The mean's 95 % interval, by Student."""
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.mean(values) - half, statistics.mean(values) + half]


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The project's, for groups of 64; the same for one scale per tensor, and for tables in full precision."""
    found: list[Goal] = []
    kinds = [("groups of 64", 64, True), ("one scale per tensor", "tensor", True), ("groups of 64, linears only", 64, False)]
    for words, group, tables in kinds:
        for bits, target in TARGETS.items():
            values = excess(rows, kind="QAT", family="PoT", bits=bits, group=group, tables=tables)
            mean = statistics.mean(values) if values else None
            goal = at_most(f"QAT, {bits}-bit PoT, {words}: nats above fp32 of as many steps, mean over seeds", target, mean)
            if len(values) > 1:
                goal["interval"] = interval(values)
            found.append(goal)
    return found


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
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: pip install matplotlib"
    groups = list(dict.fromkeys(row["group"] for row in rows if row["kind"] != FULL))
    figure = Figure(figsize=(4.2 * len(groups), 8), layout="constrained")
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
    figure.savefig(path, dpi=110)
    return f"drawn: {path.name}"


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
