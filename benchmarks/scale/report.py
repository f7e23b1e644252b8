"""The tables of large models in docs/models.md."""

from __future__ import annotations

from benchmarks.common.goals import Row
from benchmarks.common.markdown import captioned, goals_table, table
from benchmarks.common.results import Content
from benchmarks.scale.goals import EXPERTS, MEMORY, RANKS, SCALE, TIME


def document() -> dict[str, str]:
    return {"scale": captioned(SCALE, _table) or "Not measured yet."}


def _table(content: Content) -> str:
    lines = [line(row) for row in content["rows"]]
    return f"{table(('what', 'measured'), lines)}\n\n{goals_table(content['goals'])}"


def line(row: Row) -> tuple[str, str]:
    """What was measured, in words."""
    if row["part"] == MEMORY:
        peak, private = (f"{row[key] / 1e9:.2f} GB" for key in ("resident", "private"))
        return f"8B, {row['blocks']} blocks: peak memory", f"{peak}, {private} without mapped files; {_hours(row)}"
    if row["part"] == TIME:
        peak = f"peak {row['resident'] / 1e9:.2f} GB"
        return (
            f"8B, {row['blocks']} blocks: time",
            f"{row['seconds']:.0f} s, said to be {row['estimated_seconds']:.0f} s; {peak}",
        )
    if row["part"] == RANKS:
        return "SmolLM2-135M: one process, two", f"{row['one']:.0f} s, {row['two']:.0f} s"
    assert row["part"] == EXPERTS
    times = f"stack {1e3 * row['stack']:.2f} ms, linears {1e3 * row['linears']:.2f} ms"
    return f"experts, {row['case']}", times


def _hours(row: Row) -> str:
    return f"{row['wall_seconds'] / 3600:.1f} h"
