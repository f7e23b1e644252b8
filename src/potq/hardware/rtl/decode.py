"""Signals that depend on a code alone, as the plainest SystemVerilog that yields them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Values = Sequence[int | None]
"""What a signal is worth for every code; None where nobody reads it."""


@dataclass
class Decoder:
    """Collects the declarations of signals that are read off ``code``, a vector of ``bits``."""

    bits: int
    lines: list[str] = field(default_factory=list)

    def flag(self, name: str, values: Values, comment: str) -> str:
        """Declare a one-bit signal, and return how it is called; a constant is not declared."""
        known = {value for value in values if value is not None}
        if len(known) < 2:
            return f"1'b{known.pop() if known else 0}"
        self.lines.append(f"wire {name} = {self._expression(name, values)};  // {comment}")
        return name

    def _expression(self, name: str, values: Values) -> str:
        plain = plain_bit(values, self.bits)
        if plain is not None:
            return plain
        for high in range(self.bits - 1, 0, -1):
            for low in range(high):
                mask = (1 << (high + 1)) - (1 << low)
                if _agree(values, [bool(code & mask) for code in range(len(values))]):
                    return f"|code[{high}:{low}]"
        table = "".join("x" if value is None else str(value) for value in reversed(values))
        self.lines.append(f"localparam logic [{len(values) - 1}:0] {name.upper()} = {len(values)}'b{table};  // by code")
        return f"{name.upper()}[code]"

    def number(self, name: str, values: Values, width: int, comment: str) -> str:
        """Declare a signed number of ``width`` bits by its value for every code, and return its name."""
        self.lines += [f"logic signed [{width - 1}:0] {name};  // {comment}", "always_comb", "  case (code)"]
        for code, value in enumerate(values):
            if value is not None:
                sign = "-" if value < 0 else ""
                self.lines.append(f"    {self.bits}'d{code}: {name} = {sign}{width}'sd{abs(value)};")
        self.lines += ["    default: " + name + " = 'x;", "  endcase"]
        return name


def plain_bit(values: Values, bits: int) -> str | None:
    """The bit of ``code``, straight or inverted, that is ``values``; None if there is none."""
    for bit in range(bits):
        ones = [code >> bit & 1 for code in range(len(values))]
        if _agree(values, ones):
            return f"code[{bit}]"
        if _agree(values, [1 - one for one in ones]):
            return f"~code[{bit}]"
    return None


def _agree(values: Values, found: Sequence[int | bool]) -> bool:
    return all(value is None or value == other for value, other in zip(values, found, strict=True))
