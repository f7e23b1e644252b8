"""Markdown: tables, and their places in the documents between the comments ``<!-- mark -->`` and ``<!-- end -->``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.common.goals import Goal, target_of, verdict
from benchmarks.common.results import Benchmark, Content, cpu_name, instruction_set

ROOT = Path(__file__).resolve().parents[2]


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown; columns of figures stand to the right, but for the first, which names."""
    lines = list(lines)
    figures = [all(not line[i] or line[i][0] in "+-0123456789" for line in lines) for i in range(len(headings))]
    rule = ["---", *("---:" if of_figures else "---" for of_figures in figures[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))


def captioned(benchmark: Benchmark, of: Callable[[Content], str]) -> str:
    """A table for each kind of machine whose speed was measured, under the machine's name."""
    return "\n\n".join(f"{machine_name(kind, found)}:\n\n{of(found)}" for kind, found in benchmark.by_kind().items())


def machine_name(kind: str, content: Content) -> str:
    """The instruction set first: it decides."""
    machine = content["machine"]
    name = kind if "gpu" in machine else instruction_set(machine)
    return f"{name} ({machine.get('gpu') or cpu_name(machine)}, {machine['cores']} cores)"


def goals_table(goals: Sequence[Goal]) -> str:
    return table(("goal", "target", "measured", ""), map(goal_line, goals))


def goal_line(goal: Goal) -> list[str]:
    """Name, target, what was measured (with its 95 % interval where there is one), and the verdict."""
    measured = "-" if goal["measured"] is None else f"{goal['measured']:.4g}"
    low, high = goal.get("interval", (None, None))
    measured += f" [{low:.3g}, {high:.3g}]" if low is not None else ""
    said = verdict(goal)
    return [goal["name"].replace("|", r"\|"), target_of(goal), measured, f"**{said}**" if said == "missed" else said]


def filled(path: Path, tables: Mapping[str, str]) -> str:
    """The text of ``path`` with each of ``tables`` at its mark.

    Raises:
        SystemExit: a mark is missing.
    """
    text = path.read_text(encoding="utf-8")
    for mark, new in tables.items():
        before, begin, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        if not end:
            raise SystemExit(f"{path}: no lines '<!-- {mark} -->' and '<!-- end -->'")
        text = before + begin + new + end + after
    return text
