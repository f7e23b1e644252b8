"""The rows of post-training quantization's benchmarks as tables: on the terminal, and in the documents."""

from __future__ import annotations

from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.common.goals import Goal, Row, target_of, verdict
from benchmarks.common.markdown import captioned, table
from benchmarks.common.results import Content
from benchmarks.ptq.accuracy import accuracy, wikitext2_of_stories
from benchmarks.ptq.goals import ABLATION, COST, DEFAULT, FIGURES, QUANTIZE_SPEED, SCALE_METHODS, TABLE, TOKEN_WEIGHTS
from benchmarks.ptq.settings import FULL, full_precision
from potq.evaluate.bootstrap import paired_bootstrap

COLUMNS = ("fast", "gptq", "balanced", "best", "peer")


def show(rows: list[Row], model: str) -> None:
    """A line a scheme, a column an algorithm; in brackets the 95 % interval of the excess over full precision."""
    exact = full_precision(rows, model)
    rendered = Table("scheme", "bits", *COLUMNS, title=f"{model}: full precision {exact['perplexity']:.3f}")
    for scheme, bits, found in _lines(rows, model):
        rendered.add_row(scheme, f"{bits:.3f}", *(_cell(found.get(a), exact, interval=True) for a in COLUMNS))
    Console(width=150).print(rendered)


def markdown(rows: list[Row], model: str) -> str:
    """The same as Markdown, without intervals (they are half a table wide)."""
    exact = full_precision(rows, model)
    lines = (
        [scheme, f"{bits:.2f}", *(_cell(found.get(each), exact) for each in COLUMNS)]
        for scheme, bits, found in _lines(rows, model)
    )
    return table(("scheme", "bits per weight", *COLUMNS), lines)


def goals_table(goals: list[Goal]) -> str:
    lines = []
    for goal in goals:
        ends = goal.get("interval")
        measured = "-" if goal["measured"] is None else f"{goal['measured']:.2f}"
        measured += f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""
        name = goal["name"].removeprefix("excess perplexity, ").removesuffix(", at most")
        lines.append([name, target_of(goal), measured, verdict(goal)])
    return table(("ratio of excess perplexities", "at most", "measured [95 %]", ""), lines)


def steps_table(rows: list[Row]) -> str:
    """The ablation: a line a step, a column a grid."""
    grids = list(dict.fromkeys(row["scheme"] for row in rows))
    values = {(row["scheme"], row["step"]): f"{row['perplexity']:.2f}" for row in rows}
    steps = dict.fromkeys(row["step"] for row in rows)
    return table(("steps", *grids), ([step, *(values.get((grid, step), "-") for grid in grids)] for step in steps))


def whole_table(rows: list[Row]) -> str:
    """Perplexities on the windows of the tables above, and on all of the text."""
    measured = sorted((row for row in rows if "whole" in row), key=lambda row: (row["bits_per_weight"], row["scheme"]))
    lines = (
        [
            row["scheme"],
            f"{row['bits_per_weight']:g}",
            row["algorithm"],
            *_both(row["perplexity"], row["whole"]["perplexity"]),
        ]
        for row in measured
    )
    return table(("scheme", "bits per weight", "algorithm", "first windows", "whole test set"), lines)


def _both(*perplexities: float) -> list[str]:
    return [f"{perplexity:.2f}" for perplexity in perplexities]


def effects_table(rows: list[Row]) -> str:
    """A line a model and grid, a column an algorithm: excess perplexity, and in brackets the mean divergence."""
    algorithms = [name for name in dict.fromkeys(row["algorithm"] for row in rows) if name != "-"]
    found = {(row["model"], row["scheme"], row["algorithm"]): row for row in rows}
    lines = []
    for model, scheme in dict.fromkeys((row["model"], row["scheme"]) for row in rows if row["scheme"] != FULL):
        exact = full_precision(rows, model)
        cells = (found.get((model, scheme, name)) for name in algorithms)
        lines.append([model, scheme, *(f"{_cell(row, exact)}{_divergence(row)}" for row in cells)])
    return table(("model", "scheme", *algorithms), lines)


def default_table(rows: list[Row]) -> str:
    """A line a contestant of the default's benchmark."""
    headings = ("model", "text", "scheme", "", *(name for name, _, _ in FIGURES))
    order = {name: place for place, name in enumerate(("validation", "test"))}
    lines = []
    for row in sorted(rows, key=lambda row: (row["model"], order[row["text"]])):
        size, perplexity, *others = (figure(row) for _, figure, _ in FIGURES)
        shown = [f"{size / 1e6:.2f} MB", f"{perplexity:.2f}", *(f"{each:.3f}" for each in others)]
        lines.append([row["model"], row["text"], row["scheme"], row["algorithm"], *shown])
    return table(headings, lines)


def _divergence(row: Row | None) -> str:
    return f" ({row['divergence']['mean']:.4f})" if row is not None else ""


def cost_table(content: Content) -> str:
    """Time and memory of the efforts, beside what was estimated before they ran."""
    headings = ("effort", "time", "estimated", "times too low", "peak memory, GB", "estimated, GB")
    lines = []
    for row in content["rows"]:
        seconds, estimated = row["seconds"], row["estimated_seconds"]
        times = [_duration(seconds), _duration(estimated) if estimated else "-"]
        times.append(f"{seconds / estimated:.1f}" if estimated else "-")
        memory = [f"{row[key] / 1e9:.2f}" for key in ("peak_bytes", "estimated_bytes")]
        lines.append([f"`{row['effort']}`", *times, *memory])
    return table(headings, lines)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def quantizing_table(content: Content) -> str:
    """Medians over runs: quantizing while reading, by scheme; loading the packed model; the command's help."""
    headings = ("what", "seconds", "memory beyond the imports, MB", "peak resident, MB", "file, MB")
    found: dict[str, list[Row]] = {}
    for row in content["rows"]:
        found.setdefault(_task(row), []).append(row)
    sizes = ("anonymous_bytes", "peak_resident_bytes", "file_bytes")
    lines = [
        [task, f"{median(row['seconds'] for row in rows):.2g}", *(_megabytes(rows, key) for key in sizes)]
        for task, rows in found.items()
    ]
    return table(headings, lines)


def _task(row: Row) -> str:
    if row["task"] == "quantize":
        return f"quantize to `{row['scheme']}`, embedding and head `{row['embedding']}`"
    return {"load": "load the packed model", "help": "`potq --help`"}[row["task"]]


def _megabytes(rows: list[Row], key: str) -> str:
    return f"{median(row[key] for row in rows) / 1e6:.1f}" if key in rows[0] else "-"


def readme() -> dict[str, str]:
    return {"accuracy": accuracy()}


def document() -> dict[str, str]:
    """The tables of docs/ptq.md."""
    found = TABLE.read()
    models = dict.fromkeys(row["model"] for row in found["rows"])
    return {model: markdown(found["rows"], model) for model in models} | {
        "goals": goals_table(found["goals"]),
        "whole": whole_table(found["rows"]),
        "ablation": steps_table(ABLATION.read()["rows"]),
        "wikitext2 of TinyStories": wikitext2_of_stories(),
        "weights of tokens": effects_table(TOKEN_WEIGHTS.read()["rows"]),
        "default": default_table(DEFAULT.read()["rows"]),
        "scale methods": effects_table(SCALE_METHODS.read()["rows"]),
        "cost": captioned(COST, cost_table),
        "quantizing": captioned(QUANTIZE_SPEED, quantizing_table),
    }


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
