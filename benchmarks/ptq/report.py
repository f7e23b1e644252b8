"""The rows of ``ptq/table.py`` and ``ptq/ablation.py`` read: tables on the terminal, and in ``docs/ptq.md``.

``python -m benchmarks.ptq.report`` writes the tables of the committed results between the marks in ``docs/ptq.md``.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.common.markdown import put, results
from benchmarks.common.results import Goal, Row
from benchmarks.ptq.settings import FULL, full_precision
from potq.evaluate.bootstrap import paired_bootstrap

COLUMNS = ("fast", "gptq", "balanced", "best", "peer")


def show(rows: list[Row], model: str) -> None:
    """A line a scheme, a column an algorithm; in brackets the 95 % interval of the excess over full precision."""
    exact = full_precision(rows, model)
    table = Table("scheme", "bits", *COLUMNS, title=f"{model}: full precision {exact['perplexity']:.3f}")
    for scheme, bits, found in _lines(rows, model):
        table.add_row(scheme, f"{bits:.3f}", *(_cell(found.get(a), exact, interval=True) for a in COLUMNS))
    Console(width=150).print(table)


def markdown(rows: list[Row], model: str) -> str:
    """The same as Markdown, without intervals (they are half a table wide)."""
    lines = [f"| scheme | bits per weight | {' | '.join(COLUMNS)} |", "|---|---:" + "|---:" * len(COLUMNS) + "|"]
    for scheme, bits, found in _lines(rows, model):
        cells = " | ".join(_cell(found.get(a), full_precision(rows, model)) for a in COLUMNS)
        lines.append(f"| {scheme} | {bits:.2f} | {cells} |")
    return "\n".join(lines)


def goals_table(goals: list[Goal]) -> str:
    lines = ["| ratio of excess perplexities | at most | measured [95 %] | |", "|---|---:|---:|---|"]
    for goal in goals:
        ends = goal.get("interval")
        measured = "-" if goal["measured"] is None else f"{goal['measured']:.2f}"
        measured += f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""
        verdict = "met" if goal["met"] else "not measured" if goal["measured"] is None else "missed"
        name = goal["name"].removeprefix("excess perplexity, ").removesuffix(", at most")
        lines.append(f"| {name} | {goal['target']} | {measured} | {verdict} |")
    return "\n".join(lines)


def steps_table(rows: list[Row]) -> str:
    """The ablation: a line a step, a column a grid."""
    grids = list(dict.fromkeys(row["scheme"] for row in rows))
    values = {(row["scheme"], row["step"]): f"{row['perplexity']:.2f}" for row in rows}
    lines = [f"| steps | {' | '.join(grids)} |", "|---" + "|---:" * len(grids) + "|"]
    for step in dict.fromkeys(row["step"] for row in rows):
        lines.append(f"| {step} | {' | '.join(values.get((grid, step), '-') for grid in grids)} |")
    return "\n".join(lines)


def whole_table(rows: list[Row]) -> str:
    """Perplexities on the windows of the tables above, and on all of the text."""
    lines = ["| scheme | bits per weight | algorithm | first windows | whole test set |", "|---|---:|---|---:|---:|"]
    for row in sorted((row for row in rows if "whole" in row), key=lambda row: (row["bits_per_weight"], row["scheme"])):
        figures = f"{row['perplexity']:.2f} | {row['whole']['perplexity']:.2f}"
        lines.append(f"| {row['scheme']} | {row['bits_per_weight']:g} | {row['algorithm']} | {figures} |")
    return "\n".join(lines)


def _lines(rows: list[Row], model: str) -> list[tuple[str, float, dict[str, Row]]]:
    own = [row for row in rows if row["model"] == model and row["scheme"] != FULL]
    found: dict[str, dict[str, Row]] = {}
    for row in own:
        found.setdefault(row["scheme"], {})[row["algorithm"]] = row
    lines = [(scheme, next(iter(cells.values()))["bits_per_weight"], cells) for scheme, cells in found.items()]
    return sorted(lines, key=lambda line: (line[1], line[0]))


def _cell(found: Row | None, exact: Row, *, interval: bool = False) -> str:
    if found is None:
        return "-"
    excess = found["perplexity"] - exact["perplexity"]
    if excess >= 1000:
        return f"{excess:.1e}"
    if not interval:
        return f"{excess:.2f}"
    low, high = paired_bootstrap(found["window_nll"], exact["window_nll"], exact["predicted_tokens"])
    return f"{excess:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    table, ablation = results("ptq_table"), results("potptq_ablation")
    models = dict.fromkeys(row["model"] for row in table["rows"])
    tables = {model: markdown(table["rows"], model) for model in models}
    other = {
        "goals": goals_table(table["goals"]),
        "ablation": steps_table(ablation["rows"]),
        "whole": whole_table(table["rows"]),
    }
    put("ptq", tables | other)


if __name__ == "__main__":
    main()
