"""The table of cores with co-processors in docs/gates.md."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Row
from benchmarks.common.markdown import goals_table, table
from benchmarks.hardware.coprocessor_goals import (
    COPROCESSOR,
    CORE,
    EFFORTS,
    INT4,
    density,
    perplexities,
    systems,
    tokens_per_second,
)


def systems_table(rows: Sequence[Row]) -> str:
    """The densest first, and what each is of int4's."""
    found = systems(rows)
    if not {CORE, INT4} <= found.keys():
        return "Not measured yet."
    ranked = sorted(found.items(), key=lambda item: density(item[1], found[CORE]), reverse=True)
    lines = [_line(scheme, row, rows, found) for scheme, row in ranked]
    figures = ("Mcycles a token", "mm2", "of it co-processor", "clock, MHz", "tokens/s", "tokens/s for a mm2 (of int4's)")
    return table(("", *figures, *(f"perplexity, {effort}" for effort in EFFORTS)), lines)


def _line(scheme: str, row: Row, rows: Sequence[Row], found: dict[str, Row]) -> list[str]:
    core = found[CORE]
    own, clock = row["area"] - core["area"], 1000 / max(row["delay"], core["delay"])
    cells = [f"{row['cycles'] / 1e6:.2f}", f"{row['area'] / 1e6:.3f}", f"{own / 1e6:.3f}", f"{clock:.0f}"]
    dense = f"{density(row, core):.1f} ({density(row, core) / density(found[INT4], core):.2f})"
    quality = [perplexities(rows, effort).get(scheme) for effort in EFFORTS]
    name = scheme if scheme == CORE else f"`{scheme}`"
    return [name, *cells, f"{tokens_per_second(row, core):.1f}", dense, *(f"{p:.2f}" if p else "" for p in quality)]


def document() -> dict[str, str]:
    """The tables of docs/gates.md about co-processors."""
    content = COPROCESSOR.read()
    return {"systems": systems_table(content["rows"]), "goals coprocessor": goals_table(content["goals"])}
