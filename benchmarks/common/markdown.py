"""Tables of results in the documents, between the comments ``<!-- mark -->`` and ``<!-- end -->``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.results import RESULTS, Goal

DOCS = Path(__file__).resolve().parents[2] / "docs"


def results(name: str) -> dict[str, Any]:
    """What ``results/NAME.json`` holds."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown; columns of figures stand to the right."""
    lines = list(lines)
    figures = [all(not line[i] or line[i][0] in "+-0123456789" for line in lines) for i in range(len(headings))]
    rule = ["---:" if of_figures else "---" for of_figures in figures]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))


def goals_table(goals: Sequence[Goal]) -> str:
    lines = ["| goal | target | measured | |", "|---|---:|---:|---|"]
    for goal in goals:
        measured = "-" if goal["measured"] is None else f"{goal['measured']:.4g}"
        verdict = "met" if goal["met"] else "not measured" if goal["measured"] is None else "**missed**"
        lines.append(f"| {goal['name']} | {goal['target']} | {measured} | {verdict} |")
    return "\n".join(lines)


def put(name: str, tables: Mapping[str, str]) -> None:
    """Write each of ``tables`` at its mark in ``docs/NAME.md``."""
    path = DOCS / f"{name}.md"
    text = path.read_text(encoding="utf-8")
    for mark, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        if not end:
            raise SystemExit(f"{path}: no lines '<!-- {mark} -->' and '<!-- end -->'")
        text = before + begin + table + end + after
    path.write_text(text, encoding="utf-8")
