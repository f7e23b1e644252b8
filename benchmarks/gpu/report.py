"""The instructions that ``gpu/instructions.py`` counted, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Row
from benchmarks.common.markdown import goals_table, table
from benchmarks.gpu.goals import INSTRUCTIONS

DTYPES = ("float16", "bfloat16")
FORMS = {
    "PoT (`pot2`, `pot3`, `pot4`)": ("pot", "potq"),
    "PoT, exponents added (PoTPTQ)": ("pot", "add"),
    "uniform, magic number (lop3)": ("int", "magic"),
    "uniform, subnormal and one multiply-add": ("int", "fused"),
    "uniform, converted": ("int", "potq"),
    "n-term, table": ("apot", "potq"),
}


def instructions_table(rows: Sequence[Row], capability: int = 90) -> str:
    """Of decoding a weight: a line a form, a column a width."""
    found = {
        (row["grid"].rstrip("234"), row["form"], row["bits"], row["dtype"]): row["decoding_per_weight"]
        for row in rows
        if row["capability"] == capability
    }
    lines = []
    for words, (family, form) in FORMS.items():
        cells = []
        for bits in (2, 3, 4):
            counts = [found.get((family, form, bits, dtype)) for dtype in DTYPES]
            cells.append(" / ".join("-" if count is None else f"{count:.2f}" for count in counts))
        lines.append([words, *cells])
    return table(("", f"2 bits, {' / '.join(DTYPES)}", "3 bits", "4 bits"), lines)


def document() -> dict[str, str]:
    """The tables of docs/gpu.md."""
    found = INSTRUCTIONS.read()
    return {"instructions": instructions_table(found["rows"]), "goals": goals_table(found["goals"])}
