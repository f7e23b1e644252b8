"""The rows of ``papers/gpt2.py`` as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.common.goals import Row
from benchmarks.papers.goals import find
from benchmarks.papers.settings import FULL, SETTINGS, Setting

HEADINGS = ("setting", "bits", "paper", "perplexity", "int8 act.", "CE", "change", "MiB", "saved", "speed", "BERTScore")
CAPTION = "bits: of a code, with and without its sign; int8 act.: exact beyond 15 levels; speed: of fp32's"


def show(rows: Sequence[Row]) -> None:
    table = Table(title=rows[0]["protocol"], caption=CAPTION)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for line in lines(rows):
        table.add_row(*line)
    Console(width=160).print(table)


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """Under ``HEADINGS``, a line for every setting that was measured."""
    full = find(rows, FULL)
    assert full is not None, "the first row is full precision's"
    found = [(setting, find(rows, setting.name)) for setting in SETTINGS]
    return [_cells(setting, row, full) for setting, row in found if row is not None]


def _cells(setting: Setting, row: Row, full: Row) -> list[str]:
    bits = f"{setting.bits} / {setting.bits - 1}" if setting.config is not None else "32"
    entropy, score = math.log(row["perplexity"]), row.get("bertscore")
    return [
        setting.name,
        bits,
        setting.paper,
        f"{row['perplexity']:.3f}",
        f"{row['int8']['perplexity']:.3f}" if "int8" in row else "",
        f"{entropy:.3f}",
        f"{entropy - math.log(full['perplexity']):+.3f}",
        f"{row['bytes'] / 2**20:.2f}",
        f"{1 - row['bytes'] / full['bytes']:.1%}",
        f"{row['speed']['ratio']:.2f}x",
        f"{score['model_true']:.4f}" if score else "",
    ]
