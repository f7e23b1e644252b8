"""What ``papers/gpt2.py`` measures.

2506.00315 counts bits of the exponent: its 4 bits are 16 codes a sign, 5 bits with the sign, ``pot(5)`` here. The 15 levels
of 2601.02298 (zero and seven powers of two of either sign) are 4 bits with the sign, ``pot(4)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import potq
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
