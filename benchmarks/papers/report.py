"""What ``papers/gpt2.py`` measures, and what it says of it: settings, the papers' figures and claims, a table.

2506.00315 counts bits of the exponent: its 4 bits are 16 codes a sign, 5 bits with the sign, ``pot(5)`` here. The 15 levels
of 2601.02298 (zero and seven powers of two of either sign) are 4 bits with the sign, ``pot(4)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

import potq
from benchmarks.common.results import Goal, Row, at_least, at_most
from potq.numerics.grid import pot
from potq.qat.settings import QATSettings

FULL = "fp32"
CONTROL, TRAINED_FULL = "control", "fp32, trained as long"
EXPONENTS = (4, 5, 6)


class Setting(NamedTuple):
    """One row. ``paper`` are figures of the paper that it repeats: perplexity, or cross entropy above fp32's."""

    name: str
    kind: str
    config: Any = None
    settings: QATSettings | None = None
    bits: int = 32
    paper: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For a protocol; {} for full precision."""
        if self.config is None:
            return {}
        quantization = {"linears": self.config.scheme.name, "tables": self.config.embedding.name}
        fitted = {"scales": self.config.scale_method, "effort": self.config.effort.name}
        return {**quantization, **(fitted if self.settings is None else {**fitted, "training": self.settings.model_dump()})}


def _config(bits: int, *, paper: bool, effort: str = "fast") -> potq.PoTConfig:
    """Linears and tables at ``bits`` with the sign, as the papers have it or as potq does."""
    options: dict[str, Any] = {"group_size": "tensor", "rounding": "log"} if paper else {"group_size": 64}
    scheme = potq.QuantScheme(grid=pot(bits), **options)
    return potq.PoTConfig(scheme=scheme, embedding=scheme, scale_method="absmax" if paper else "mse", effort=effort)


def exponent_name(bits: int, *, paper: bool) -> str:
    return f"PTQ, {bits} exponent bits, {'as 2506.00315' if paper else 'potq'}"


def name_15(kind: str, *, paper: bool) -> str:
    return f"{kind}, 15 levels, {'as 2601.02298' if paper else 'potq'}"


_CLAIMED = {4: "CE +1.3", 6: "CE +0.88"}
_LEARNED, _FIXED, _SEARCHED = QATSettings(scales="learned"), QATSettings(scales="fixed"), QATSettings(scales="searched")
_ALWAYS = QATSettings(scales="searched", search_until=1.0)
SETTINGS = [
    Setting(FULL, FULL, paper="23.73"),
    *(
        Setting(exponent_name(bits, paper=paper), "PTQ", _config(bits + 1, paper=paper), None, bits + 1, claimed)
        for bits in EXPONENTS
        for paper, claimed in ((True, _CLAIMED.get(bits, "")), (False, ""))
    ),
    Setting(name_15("PTQ", paper=True), "PTQ", _config(4, paper=True), None, 4, "90"),
    Setting(name_15("QAT", paper=True), "QAT", _config(4, paper=True), _FIXED, 4, "30.47"),
    Setting(name_15("PTQ", paper=False), "PTQ", _config(4, paper=False), None, 4),
    Setting("PTQ, 15 levels, potq, balanced", "PTQ", _config(4, paper=False, effort="balanced"), None, 4),
    Setting(name_15("QAT", paper=False), "QAT", _config(4, paper=False), _SEARCHED, 4),
    Setting("QAT, 15 levels, potq, searched to the end", "QAT", _config(4, paper=False), _ALWAYS, 4),
    Setting("QAT, 15 levels, potq, learned scales", "QAT", _config(4, paper=False), _LEARNED, 4),
    Setting("PTQ, apot4 and int8 tables, potq, balanced", "PTQ", potq.PoTConfig("apot4", effort="balanced"), None, 4),
    Setting(TRAINED_FULL, CONTROL),
]
HEADINGS = ("setting", "bits", "paper", "perplexity", "int8 act.", "CE", "change", "MiB", "saved", "speed", "BERTScore")
CAPTION = "bits: of a code, with and without its sign; int8 act.: exact beyond 15 levels; speed: of fp32's"
PAPER_RATIO, PAPER_GAIN = 30.47 / 23.73, 1 - 30.47 / 90


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The papers' claims, each for their settings and for potq's."""
    found: list[Goal] = []
    for paper in (True, False):
        words = "the paper's settings" if paper else "potq's settings"
        for bits, most in ((4, 1.3), (6, 0.88)):
            change = _entropy_change(rows, exponent_name(bits, paper=paper))
            found.append(at_most(f"2506.00315: cross entropy above fp32's at {bits} exponent bits, {words}", most, change))
        ptq, qat = name_15("PTQ", paper=paper), name_15("QAT", paper=paper)
        gain = _minus_one(_ratio(rows, qat, ptq))
        found += [
            *(
                at_most(f"2601.02298: perplexity of QAT / {base}, {words}", round(PAPER_RATIO, 3), _ratio(rows, qat, base))
                for base in (FULL, TRAINED_FULL)
            ),
            at_least(f"2601.02298: perplexity that QAT saves on PTQ, {words}", round(PAPER_GAIN, 2), gain),
            at_least(f"2601.02298: memory saved, {words}", 0.875, _minus_one(_quotient(rows, qat, FULL, "bytes"))),
            at_least(f"2601.02298: tokens a second / fp32's, {words}", 3.0, _speed(rows, qat)),
            at_most(f"2601.02298: BERTScore lost by QAT, {words}", 0.01, _minus_one(_bertscore(rows, qat))),
        ]
    return found


def _find(rows: Sequence[Row], name: str) -> Row | None:
    return next((row for row in rows if row["setting"] == name), None)


def _quotient(rows: Sequence[Row], name: str, base: str, key: str) -> float | None:
    one, other = _find(rows, name), _find(rows, base)
    return one[key] / other[key] if one and other else None


def _ratio(rows: Sequence[Row], name: str, base: str) -> float | None:
    return _quotient(rows, name, base, "perplexity")


def _minus_one(ratio: float | None) -> float | None:
    return None if ratio is None else 1 - ratio


def _entropy_change(rows: Sequence[Row], name: str) -> float | None:
    ratio = _ratio(rows, name, FULL)
    return None if ratio is None else math.log(ratio)


def _speed(rows: Sequence[Row], name: str) -> float | None:
    row = _find(rows, name)
    return row["speed"]["ratio"] if row else None


def _bertscore(rows: Sequence[Row], name: str) -> float | None:
    scores = (_find(rows, name) or {}).get("bertscore")
    return scores["model_true"] / scores["full_true"] if scores else None


def show(rows: Sequence[Row]) -> None:
    table = Table(title=rows[0]["protocol"], caption=CAPTION)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for line in lines(rows):
        table.add_row(*line)
    Console(width=160).print(table)


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """Under ``HEADINGS``, a line for every setting that was measured."""
    full = _find(rows, FULL)
    assert full is not None, "the first row is full precision's"
    found = [(setting, _find(rows, setting.name)) for setting in SETTINGS]
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
