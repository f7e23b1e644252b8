"""How a grid's codes become levels on a GPU: which of three forms, and its constants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from potq.grid import Grid

Kind = Literal["exponent", "integer", "table"]


@dataclass(frozen=True)
class Form:
    """The decoding of one grid.

    Attributes:
        kind: "exponent" for magnitudes that are evenly spaced powers of two (and zero), "integer" for two's complement,
            "table" for the rest: n-term grids, E2M1, tables.
        stride: the exponents' distance, for the kind "exponent".
        has_zero: whether index 0 is zero, for the kind "exponent".
        reach: octaves from the largest level down to the least nonzero one, for the kind "exponent".
    """

    kind: Kind
    stride: int = 0
    has_zero: bool = False
    reach: int = 0


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
    return Form("exponent", steps.pop(), bool(zeros), powers[-1] - powers[0])
