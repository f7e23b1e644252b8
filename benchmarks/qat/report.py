"""The rows of the benchmarks of quantization-aware training as tables and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks.common.goals import Row
from benchmarks.common.markdown import captioned, goals_table, table
from benchmarks.papers import report as papers
from benchmarks.papers.goals import NANO
from benchmarks.qat import nanogpt_report as nanogpt
from benchmarks.qat.goals import NANOGPT, SMOLLM2, STEP, TINYSTORIES
from benchmarks.qat.plot import AS_IT_IS, FULL, STATES, Points

FAST, BEST, DISTILLED, ON_DATA = STATES
FROM_CONTROL = "distilled from that control"
WITHOUT_DATA = "distilled on text of full precision's own"
STATE = {
    "-": AS_IT_IS,
    "fast": FAST,
    "best": BEST,
    "distillation": DISTILLED,
    "next_token": ON_DATA,
    "free": WITHOUT_DATA,
    "tuned_teacher": FROM_CONTROL,
}
SMOLLM2_HEADINGS = ("scheme", "", "perplexity", "of the gap closed", "of `best`'s gap closed")
TINYSTORIES_HEADINGS = (
    "scheme",
    "rounded to nearest",
    "`best`",
    "distilled",
    "of the gap closed",
    "next tokens",
    "above the control",
)
STEP_HEADINGS = ("model", "scheme", "scales", "time, float32", "memory, float32", "time, bfloat16", "memory, bfloat16")


def smollm2(rows: list[Row]) -> str:
    """A line a state of the model; shares closed are of what rounding to nearest leaves, and of what ``best`` leaves."""
    starts = ("fast", "best")
    lines = [[*_state(row), f"{row['perplexity']:.2f}", *(_share(rows, row, start) for start in starts)] for row in rows]
    return table(SMOLLM2_HEADINGS, lines)


def bertscores(rows: list[Row]) -> str:
    """A line a state of the model; two columns an encoder."""
    judged = [row for row in rows if row["bertscores"]]
    judges = list(dict.fromkeys(judge for row in judged for judge in row["bertscores"]))
    kinds = {"the text's": "model_true", "full precision's": "model_reference"}
    headings = ["scheme", "", *(f"{name}, {judge}" for judge in judges for name in kinds)]
    lines = [[*_state(row), *(_score(row, judge, kind) for judge in judges for kind in kinds.values())] for row in judged]
    return table(headings, lines)


def _state(row: Row) -> list[str]:
    return ["full precision" if row["scheme"] == FULL else f"`{row['scheme']}`", STATE[row["step"]]]


def _share(rows: list[Row], row: Row, start: str) -> str:
    if row["step"] not in ("distillation", "free"):
        return ""
    exact, first = _perplexity(rows, scheme=FULL, step="-"), _perplexity(rows, scheme=row["scheme"], step=start)
    return f"{(first - row['perplexity']) / (first - exact):.0%}"


def _score(row: Row, judge: str, kind: str) -> str:
    return f"{row['bertscores'][judge][kind]['mean']:.3f}" if judge in row["bertscores"] else ""


def tinystories(rows: list[Row]) -> str:
    exact, control = (_perplexity(rows, scheme=FULL, part=part) for part in ("ptq", "data"))
    lines = []
    for scheme in dict.fromkeys(row["scheme"] for row in rows if row["part"] == "recovery"):
        fast, best = (_perplexity(rows, part="ptq", scheme=scheme, start=s, rounding="nearest") for s in ("fast", "best"))
        distilled, on_data = (_perplexities(rows, part=part, scheme=scheme) for part in ("recovery", "data"))
        closed = (fast - statistics.mean(distilled)) / (fast - exact)
        above = [f"{closed:.0%}", _spread(on_data), f"{statistics.mean(on_data) - control:.2f}"]
        lines.append([f"`{scheme}`", f"{fast:.2f}", f"{best:.2f}", _spread(distilled), *above])
    return table(TINYSTORIES_HEADINGS, lines)


def ablation(rows: list[Row]) -> str:
    """Perplexities, mean and deviation over seeds."""
    rows = [row for row in rows if row["part"] == "ablation"]
    kinds = sorted({(row["start"], row["scheme"], row["rounding"]) for row in rows}, reverse=True)
    scales = list(dict.fromkeys(row["scales"] for row in rows))
    lines = []
    for start, scheme, rounding in kinds:
        found = (_perplexities(rows, scales=s, start=start, scheme=scheme, rounding=rounding) for s in scales)
        lines.append([f"`{scheme}`", f"`{start}`", rounding, *map(_spread, found)])
    return table(("scheme", "from", "rounding", *(f"`{s}` scales" for s in scales)), lines)


def steps(rows: list[Row]) -> str:
    lines = []
    for cell in dict.fromkeys((row["model"], row["scheme"], row["scales"]) for row in rows):
        own = {row["dtype"]: row for row in rows if (row["model"], row["scheme"], row["scales"]) == cell}
        figures = [own[dtype][f"{what}_ratio"] for dtype in ("float32", "bfloat16") for what in ("time", "memory")]
        lines.append([*cell, *(f"{figure:.2f}" for figure in figures)])
    return table(STEP_HEADINGS, lines)


def points(rows: Sequence[Row], state: Callable[[Row], str]) -> dict[tuple[str, str], list[float]]:
    """Perplexities, a seed each, by scheme and by what ``state`` says was done."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row["scheme"], STATE[state(row)]), []).append(row["perplexity"])
    return found


def of_stories(rows: Sequence[Row]) -> dict[tuple[str, str], list[float]]:
    """TinyStories without the ablation and without the teacher's own text."""
    shown = [row for row in rows if row["part"] not in ("ablation", "free") and row["rounding"] == "nearest"]
    return points(shown, lambda row: row["start"] if row["part"] == "ptq" else row["loss"])


def _perplexities(rows: Sequence[Row], **key: object) -> list[float]:
    return [row["perplexity"] for row in rows if key.items() <= row.items()]


def _perplexity(rows: Sequence[Row], **key: object) -> float:
    return statistics.mean(_perplexities(rows, **key))


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def document() -> dict[str, str]:
    """The tables of docs/qat.md; a step's 48 goals are the picture's dashed lines."""
    found = {"smollm2": SMOLLM2.read(), "tinystories": TINYSTORIES.read(), "nanogpt": NANOGPT.read()}
    rows = {name: content["rows"] for name, content in found.items()}
    return {
        "smollm2": smollm2(rows["smollm2"]),
        "bertscores": bertscores(rows["smollm2"]),
        "tinystories": tinystories(rows["tinystories"]),
        "ablation": ablation(rows["tinystories"]),
        "nanogpt": table(nanogpt.HEADINGS, nanogpt.lines(rows["nanogpt"])),
        "papers": captioned(NANO, lambda content: table(papers.HEADINGS, papers.lines(content["rows"]))),
        "step": captioned(STEP, lambda content: steps(content["rows"])),
        "goals, papers": captioned(NANO, lambda content: goals_table(content["goals"])),
        **{f"goals, {name}": goals_table(content["goals"]) for name, content in found.items()},
    }


def recovery() -> dict[str, Points]:
    """What the picture of the same name shows: a panel a model."""
    smollm2 = points(SMOLLM2.read()["rows"], lambda row: row["step"])
    return {"SmolLM2-135M": smollm2, "TinyStories-656K": of_stories(TINYSTORIES.read()["rows"])}
