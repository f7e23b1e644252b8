"""How a grid's codes become levels on a GPU: which of three forms, and its constants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from potq.numerics.grid import Grid

Kind = Literal["powers", "integer", "table"]
BIAS = {10: 15, 7: 127}  # of the exponent, by bits of the mantissa: float16 and bfloat16


@dataclass(frozen=True)
class Form:
    """The decoding of one grid.

    Attributes:
        kind: "powers" for magnitudes that are evenly spaced powers of two (and zero), "integer" for two's complement,
            "table" for the rest: n-term grids, E2M1, tables.
        stride: the exponents' distance, for the kind "powers".
        last: the largest index's exponent above index 0, for the kind "powers".
        has_zero: whether index 0 is zero, for the kind "powers".
    """

    kind: Kind
    stride: int = 0
    last: int = 0
    has_zero: bool = False

    def base(self, mantissa: int) -> int:
        """The exponent field of index 0 in a float with so many bits of mantissa."""
        return 0 if self.has_zero or self.kind != "powers" else BIAS[mantissa] - self.last

    def lift(self, mantissa: int) -> float:
        """A level of ``level / reference`` over the float that its bits make: a power of two."""
        return 2.0 ** (BIAS[mantissa] - self.last) if self.has_zero else 1.0


@lru_cache(maxsize=256)
def form_of(grid: Grid) -> Form:
    """The form of ``grid``."""
    if grid.encoding == "twos-complement":
        return Form("integer")
    powers = [m.bit_length() - 1 for m in grid.magnitudes if m]
    steps = {high - low for low, high in pairwise(powers)} or {1}
    zeros = len(grid.magnitudes) - len(powers)
    if grid.encoding == "table" or not grid.is_power_of_two or len(steps) > 1 or 0 in steps or zeros > 1:
        return Form("table")
    stride = steps.pop()
    return Form("powers", stride, stride * (len(grid.magnitudes) - 1), bool(zeros))
