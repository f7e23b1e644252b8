"""What the post-training quantization table is judged by."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from benchmarks.common.results import Goal, Row
from benchmarks.ptq.settings import FULL, INTEGERS, PURE, TWO_TERM, full_precision
from potq.evaluate.bootstrap import middle, resampled

STORIES, SMOLLM2 = "TinyStories-656K", "SmolLM2-135M"
_JUDGED = ("fast", "gptq", "balanced", "best")


def goals(rows: list[Row]) -> list[Goal]:
    """Ratios of excess perplexity over full precision, the same algorithm on both sides; None is not measured yet.

    4 bits are decided on TinyStories, whose weights were never quantized before; so is what ``balanced`` does to integers.
    """
    found: list[Goal] = []
    known = {row["model"] for row in rows if row["scheme"] == FULL}  # an excess is one over full precision
    rows = [row for row in rows if row["model"] in known]
    for algorithm in _JUDGED:
        for model in (STORIES, SMOLLM2) if algorithm != "balanced" else (STORIES,):
            found.append(_ratio(rows, model, algorithm, "2 bits, best pure PoT / best integers", PURE[2], INTEGERS[2], 0.95))
        if algorithm != "balanced":
            found.append(
                _ratio(rows, SMOLLM2, algorithm, "3 bits, best pure PoT / best integers", PURE[3], INTEGERS[3], 0.8)
            )
        family = (*PURE[3], *TWO_TERM[3])
        found.append(
            _ratio(rows, STORIES, algorithm, "3 bits, best of the PoT family / best integers", family, INTEGERS[3], 0.95)
        )
        found.append(_ratio(rows, STORIES, algorithm, "4 bits, best 2-term / NF4", TWO_TERM[4], ("nf4",), 1.0))
        found.append(_ratio(rows, STORIES, algorithm, "4 bits, best 2-term / best int4", TWO_TERM[4], INTEGERS[4], 0.85))
    for model, target in ((SMOLLM2, 0.25), (STORIES, 0.5)):
        found.append(_improvement(rows, model, "pot4", "best", "fast", target))
        for scheme in ("pot2", "pot3"):
            found.append(_improvement(rows, model, scheme, "best", "gptq", 0.5))
    for scheme, target in (("apot4", 1.2), ("pot4", 1.4)):
        name = f"{scheme}, E8M0 with row scales / float16, groups of 32"
        found.append(_ratio(rows, STORIES, "best", name, (f"{scheme} g32 e8m0 + row",), (f"{scheme} g32",), target))
    return found


def _ratio(
    rows: list[Row], model: str, algorithm: str, name: str, ours: Iterable[str], theirs: Iterable[str], target: float
) -> Goal:
    over, under = (_least(rows, model, schemes, algorithm) for schemes in (ours, theirs))
    return _goal(rows, f"{model}, {algorithm}: {name}", over, under, target)


def _improvement(rows: list[Row], model: str, scheme: str, algorithm: str, before: str, target: float) -> Goal:
    over, under = (_least(rows, model, (scheme,), each) for each in (algorithm, before))
    return _goal(rows, f"{model}, {scheme}: {algorithm} / {before}", over, under, target)


def _goal(rows: list[Row], name: str, over: Row | None, under: Row | None, target: float) -> Goal:
    goal: Goal = {"name": f"excess perplexity, {name}, at most", "target": target, "measured": None, "met": False}
    if over is not None and under is not None:
        exact = full_precision(rows, over["model"])
        measured = (over["perplexity"] - exact["perplexity"]) / (under["perplexity"] - exact["perplexity"])
        goal |= {
            "measured": measured,
            "met": measured <= target,
            "interval": _interval(over, under, exact),
            "rows": [f"{row['scheme']}, {row['algorithm']}" for row in (over, under)],
        }
    return goal


def _interval(over: Row, under: Row, exact: Row) -> list[float]:
    """The ratio's 95 % interval: paired bootstrap over windows, the same windows for all three."""
    nll = torch.tensor([row["window_nll"] for row in (over, under, exact)], dtype=torch.float64)
    above, below, base = resampled(nll, exact["predicted_tokens"])
    return [round(end, 4) for end in middle((above - base) / (below - base))]


def _least(rows: list[Row], model: str, schemes: Iterable[str], algorithm: str) -> Row | None:
    """The row of least perplexity among ``schemes``."""
    wanted = set(schemes)
    found = [row for row in rows if row["model"] == model and row["scheme"] in wanted and row["algorithm"] == algorithm]
    return min(found, key=lambda row: float(row["perplexity"]), default=None)
