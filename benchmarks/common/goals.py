"""Goals: figures the project set itself, and what came out. What every family's ``goals.py`` builds on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

Row = dict[str, Any]


class Goal(TypedDict):
    """A figure the project set itself, and what came out; where it matters its 95 % interval, and the rows it is from."""

    name: str
    target: str | float
    measured: float | None
    met: bool
    interval: NotRequired[list[float]]
    rows: NotRequired[list[str]]


Judge = Callable[[Sequence[Row]], list[Goal]]
"""Goals from the rows of one results file; what the rows do not have is not measured."""


def judged(name: str, target: str | float, measured: float | None, meets: Callable[[float], bool]) -> Goal:
    """A goal that ``meets`` decides; None is not measured yet, and not met."""
    return {"name": name, "target": target, "measured": measured, "met": measured is not None and meets(measured)}


def no_more(name: str, most: float, measured: float | None) -> Goal:
    """A goal whose name already says that ``most`` is the largest value allowed."""
    return judged(name, most, measured, lambda value: value <= most)


def at_least(name: str, target: float, measured: float | None) -> Goal:
    """The goal that ``name`` is ``target`` or more."""
    return judged(f"{name}, at least", target, measured, lambda value: value >= target)


def at_most(name: str, target: float, measured: float | None) -> Goal:
    """The same, ``target`` or less."""
    return no_more(f"{name}, at most", target, measured)


def under(name: str, target: float, measured: float | None) -> Goal:
    """The same, less than ``target``."""
    return judged(f"{name}, under", target, measured, lambda value: value < target)


def verdict(goal: Goal) -> str:
    return "met" if goal["met"] else "not measured" if goal["measured"] is None else "missed"


def target_of(goal: Goal) -> str:
    """Without the last digits of a product of floats."""
    target = goal["target"]
    return target if isinstance(target, str) else f"{round(target, 6)}"


def print_goals(goals: Sequence[Goal]) -> None:
    """One line per goal: met or missed, measured, target."""
    for goal in goals:
        measured = f"{goal['measured']:.4g}" if goal["measured"] is not None else "not measured"
        print(f"{'met   ' if goal['met'] else 'MISSED'} {goal['name']}: {measured} (target {target_of(goal)})")
