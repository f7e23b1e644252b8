"""What quantization-aware training is judged by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common.goals import Goal, Row, at_least, at_most
from benchmarks.common.results import Benchmark
from potq.evaluate.bootstrap import middle, resampled

FULL = "fp32"  # nano-GPT in full precision
NATS = {4: 0.03, 3: 0.06, 2: 0.15}  # by bits: nano-GPT's loss above full precision's
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile by number of seeds
NONE = "none"  # the scheme of a model in full precision that was trained, or not
DISTILLED, ON_DATA, TUNED = "distillation", "next_token", "tuned_teacher"  # the last distilled from the control
CLOSED = {"pot4": 0.9, "pot3": 0.85, "pot2": 0.8}  # of the gap between rounding to nearest and full precision
SCORED = ((DISTILLED, "-"), (ON_DATA, "-"), (TUNED, "-"), (ON_DATA, ON_DATA), (TUNED, ON_DATA))
"""How the model was trained (PoT-QAT: on next tokens), and the full-precision one whose score it is divided by."""
STEP_GOALS = {"time": 1.25, "memory": 1.15}
"""Of a step, over full precision's."""


def nanogpt(rows: Sequence[Row]) -> list[Goal]:
    """The project's, for groups of 64; the same for one scale per tensor, and for tables in full precision."""
    found: list[Goal] = []
    kinds = [("groups of 64", 64, True), ("one scale per tensor", "tensor", True), ("groups of 64, linears only", 64, False)]
    for words, group, tables in kinds:
        for bits, target in NATS.items():
            values = excess(rows, kind="QAT", family="PoT", bits=bits, group=group, tables=tables)
            mean = statistics.mean(values) if values else None
            goal = at_most(f"QAT, {bits}-bit PoT, {words}: nats above fp32 of as many steps, mean over seeds", target, mean)
            if len(values) > 1:
                goal["interval"] = interval(values)
            found.append(goal)
    return found


def interval(values: Sequence[float]) -> list[float]:
    """The mean's 95 % interval, by Student."""
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.mean(values) - half, statistics.mean(values) + half]


def excess(rows: Sequence[Row], **key: Any) -> list[float]:
    """Loss above full precision's of the same seed, a seed each."""
    full = {row["seed"]: row["loss"] for row in rows if row["kind"] == FULL}
    return [row["loss"] - full[row["seed"]] for row in chosen(rows, **key)]


def chosen(rows: Sequence[Row], **key: Any) -> list[Row]:
    return [row for row in rows if key.items() <= row.items()]


def smollm2(rows: Sequence[Row]) -> list[Goal]:
    found: list[Goal] = []
    values = {(row["scheme"], row["step"]): row["perplexity"] for row in rows}
    exact = values.get((NONE, "-"))
    for scheme, target in CLOSED.items():
        rounded, best, distilled = (values.get((scheme, step)) for step in ("fast", "best", DISTILLED))
        closed = left = None
        if exact and rounded and best and distilled:
            closed = (rounded - distilled) / (rounded - exact)
            left = (best - distilled) / (best - exact)
        found.append(at_least(f"gap between rounding to nearest and full precision closed, {scheme}", target, closed))
        found.append(at_least(f"of what the best post-training quantization left, closed, {scheme}", 0.5, left))
    for judge in dict.fromkeys(name for row in rows for name in row["bertscores"]):
        scores = {(row["scheme"], row["step"]): row["bertscores"][judge] for row in rows if judge in row["bertscores"]}
        pairs = [((scheme, step), (NONE, base)) for scheme in CLOSED for step, base in SCORED]
        # what distillation reaches is a goal at every width, measured or not; the others were added with their rows
        wanted = {pair for pair in pairs if pair[0][1] == DISTILLED and "prompts" not in judge}
        found += [_score_goal(scores, judge, *pair) for pair in pairs if pair in wanted or scores.keys() >= {*pair}]
    return found


def _score_goal(scores: dict[tuple[str, str], Any], judge: str, trained: tuple[str, str], base: tuple[str, str]) -> Goal:
    control = "" if base[1] == "-" else f" after {base[1]}"
    name = f"BERTScore ({judge}) with the true continuations, {' after '.join(trained)} / full precision{control}"
    if not scores.keys() >= {trained, base}:
        return at_least(name, 0.99, None)
    each = torch.tensor([scores[cell]["model_true"]["each"] for cell in (trained, base)], dtype=torch.float64)
    own, full = resampled(each, each.shape[1]).log()  # means over the drawn prompts
    goal = at_least(name, 0.99, float(each[0].mean() / each[1].mean()))
    goal["interval"] = list(middle(own / full))
    return goal


def tinystories(rows: Sequence[Row]) -> list[Goal]:
    found: list[Goal] = []
    for scheme, target in CLOSED.items():
        found.append(at_least(f"gap closed by distillation, {scheme}", target, _closed(rows, scheme, "recovery")))
    found.append(at_least("gap closed without data, pot4", 0.75, _closed(rows, "pot4", "free")))
    return found


def _closed(rows: Sequence[Row], scheme: str, part: str) -> float | None:
    """Of the gap between rounding to nearest and full precision; the mean over seeds."""
    exact, rounded = _perplexity(rows, "ptq", NONE, "-"), _perplexity(rows, "ptq", scheme, "fast")
    trained = _perplexity(rows, part, scheme, "best")
    if exact is None or rounded is None or trained is None:
        return None
    return (rounded - trained) / (rounded - exact)


def _perplexity(rows: Sequence[Row], part: str, scheme: str, start: str) -> float | None:
    chosen = [r for r in rows if (r["part"], r["scheme"], r["start"], r["rounding"]) == (part, scheme, start, "nearest")]
    return statistics.mean(r["perplexity"] for r in chosen) if chosen else None


def step(rows: Sequence[Row]) -> list[Goal]:
    found: list[Goal] = []
    for row in rows:
        name = f"{row['model']}, {row['dtype']}, {row['scheme']}, {row['scales']} scales"
        for what, target in STEP_GOALS.items():
            found.append(at_most(f"{what} of a step / full precision, {name}", target, row[f"{what}_ratio"]))
    return found


NANOGPT = Benchmark("qat_nanogpt", nanogpt)
SMOLLM2 = Benchmark("qat_smollm2", smollm2)
TINYSTORIES = Benchmark("qat_tinystories", tinystories)
STEP = Benchmark("qat_step", step, timed="cpu")
BENCHMARKS = (SMOLLM2, TINYSTORIES, NANOGPT, STEP)
