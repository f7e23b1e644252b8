"""Grids: the table of ``2**bits`` levels that a code can stand for.

A level is an integer; what a weight is worth is ``scale * level / reference``. Three encodings:

* sign-magnitude: ``code = sign << (bits - 1) | index`` and ``level = +-magnitudes[index]``. Power-of-two (PoT), n-term
  (additive) PoT, E2M1 and mid-rise integers are all such tables.
* two's complement: ``level = code`` read as a signed integer.
* table: ``level = table[code]``, ascending and as asymmetric as one likes. The non-uniform peers of PoT grids (NF4, IQ4_NL)
  so run under the same algorithms and kernels.

``reference = 2**floor(log2(largest |level|))`` is the level the stored scale refers to, so that the scale stays near the
group's largest weight whatever the bits (a 7-bit PoT grid spans 2**62; a scale of its smallest level would underflow).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from potq.errors import ConfigError
from potq.validation import Strict

Encoding = Literal["sign-magnitude", "twos-complement", "table"]


class Grid(Strict):
    """A table of ``2**bits`` integer levels, indexed by code. Frozen and hashable; its JSON is what a checkpoint stores.

    ``magnitudes`` (sign-magnitude only) has ``2**(bits-1)`` non-negative, non-decreasing integers. A repeated magnitude
    leaves the later codes unused: that is how a grid embeds in a wider code table (``mxpot`` in E2M1). The code of
    "-0" is unused too; it reads as 0.

    ``table`` (encoding "table" only) has ``2**bits`` strictly ascending integers, from a negative to a positive one. Other
    grids' JSON does not name it.

    Levels have at most 13 significant bits and stay within ``+-2**63``, so that a level times a stored scale is exact in
    float32.

    Raises:
        ConfigError: ``bits`` outside 2..8, a list of another length or order, a level that float32 could not hold.

    Example:
        >>> from potq import Grid
        >>> grid = Grid(bits=3, magnitudes=(0, 1, 3, 9))
        >>> grid.levels  # by code: the highest bit is the sign
        (0, 1, 3, 9, 0, -1, -3, -9)
        >>> grid.reference  # a stored scale is what this level is worth
        8
    """

    bits: int = Field(ge=2, le=8)
    encoding: Encoding = "sign-magnitude"
    magnitudes: tuple[int, ...] = ()
    table: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Grid:
        if self.magnitudes and self.encoding != "sign-magnitude":
            raise ValueError(f"a grid of encoding {self.encoding!r} has no magnitude table")
        if self.table and self.encoding != "table":
            raise ValueError(f"a grid of encoding {self.encoding!r} has no table of levels")
        if self.encoding == "sign-magnitude":
            self._check_magnitudes()
        elif self.encoding == "table":
            self._check_table()
        return self

    def _check_magnitudes(self) -> None:
        expected = 2 ** (self.bits - 1)
        if len(self.magnitudes) != expected:
            raise ValueError(f"a {self.bits}-bit grid needs {expected} magnitudes, found {len(self.magnitudes)}")
        if self.magnitudes[0] < 0 or list(self.magnitudes) != sorted(self.magnitudes) or not self.magnitudes[-1]:
            raise ValueError(f"magnitudes must be non-negative, ascending and not all zero: {self.magnitudes}")
        _check_exact("magnitudes", self.magnitudes)

    def _check_table(self) -> None:
        if len(self.table) != 2**self.bits:
            raise ValueError(f"a {self.bits}-bit table needs {2**self.bits} levels, found {len(self.table)}")
        if any(low >= high for low, high in pairwise(self.table)) or not self.table[0] < 0 < self.table[-1]:
            raise ValueError(f"a table is strictly ascending, from a negative level to a positive one: {self.table}")
        _check_exact("levels", self.table)

    @model_serializer(mode="wrap")
    def _without_empty_table(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Checkpoints of the other grids keep the JSON they had before there were tables."""
        fields: dict[str, Any] = serialize(self)
        if not self.table:
            fields.pop("table", None)
        return fields

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """The level of every code, in code order."""
        if self.encoding == "table":
            return self.table
        if self.encoding == "twos-complement":
            half = 2 ** (self.bits - 1)
            return tuple(range(half)) + tuple(range(-half, 0))
        return self.magnitudes + tuple(-m for m in self.magnitudes)

    @cached_property
    def reference(self) -> int:
        """The level that the stored scale refers to: ``2**floor(log2(max |level|))``."""
        return 1 << (max(abs(level) for level in self.levels).bit_length() - 1)

    @property
    def has_zero(self) -> bool:
        return 0 in self.levels

    @property
    def is_symmetric(self) -> bool:
        return {-level for level in self.levels} == set(self.levels)

    @property
    def fits_int8(self) -> bool:
        """Whether every level fits a signed byte, which is what the integer kernels need."""
        return min(self.levels) >= -128 and max(self.levels) <= 127

    @property
    def terms(self) -> int:
        """How many signed powers of two (shifts) the costliest level needs."""
        return max(shift_terms(level) for level in self.levels)

    @property
    def is_power_of_two(self) -> bool:
        """Whether every nonzero level is one shift: a PoT grid in the strict sense."""
        return self.terms == 1

    @property
    def unused_codes(self) -> frozenset[int]:
        """Codes that are never written, "-0" apart; finding one in a file means that the file is damaged."""
        if self.encoding != "sign-magnitude":
            return frozenset()
        half = len(self.magnitudes)
        repeats = [i for i in range(1, half) if self.magnitudes[i] == self.magnitudes[i - 1]]
        return frozenset(repeats + [half + i for i in repeats])


def _check_exact(what: str, levels: Iterable[int]) -> None:
    inexact = [m for m in levels if abs(m) > 2**63 or (abs(m) // (m & -m or 1)).bit_length() > 13]
    if inexact:
        raise ValueError(f"{what} {inexact} exceed 2**63 or 13 significant bits; float32 could not hold their products")


def shift_terms(level: int) -> int:
    """The least number of signed powers of two that sum to ``level`` (weight of its non-adjacent form)."""
    level = abs(level)
    return (level ^ (3 * level)).bit_count()


def pot(bits: int, *, zero: bool = True, stride: int = 1) -> Grid:
    """Power-of-two grid: magnitudes ``[0,] 1, 2**stride, 4**stride, ...`` (2506.00315 eq. 2; 2507.11959 eq. 3).

    ``bits`` counts the sign; the papers' "4 bits" for the exponent are ``bits=5`` here.

    Raises:
        ConfigError: ``bits`` outside 2..7 or ``stride`` below 1.
    """
    if not 2 <= bits <= 7 or stride < 1:
        raise ConfigError(f"a PoT grid has 2..7 bits (sign included) and stride >= 1, found {bits} and {stride}")
    powers = 2 ** (bits - 1) - zero
    return Grid(bits=bits, magnitudes=(0,) * zero + tuple(2 ** (stride * i) for i in range(powers)))


def additive(magnitudes: tuple[int, ...], *, terms: int = 2) -> Grid:
    """N-term (additive) PoT grid from a magnitude table whose size is a power of two.

    Raises:
        ConfigError: a magnitude needs more than ``terms`` shifts, or the table's size is not 2, 4, ..., 128.
    """
    costly = [m for m in magnitudes if shift_terms(m) > terms]
    if costly:
        raise ConfigError(f"magnitudes {costly} need more than {terms} signed powers of two")
    bits = len(magnitudes).bit_length()
    if len(magnitudes) != 2 ** (bits - 1) or bits < 2:
        raise ConfigError(f"a magnitude table has 2, 4, 8, ... entries, found {len(magnitudes)}")
    return Grid(bits=bits, magnitudes=magnitudes)


def uniform(bits: int, *, midrise: bool = False) -> Grid:
    """Integer grid of 2..8 bits: two's complement, or mid-rise (odd multiples of half a step, no zero).

    Raises:
        ConfigError: ``bits`` outside 2..8.
    """
    if not 2 <= bits <= 8:
        raise ConfigError(f"a uniform grid has 2..8 bits, found {bits}")
    if midrise:
        return Grid(bits=bits, magnitudes=tuple(range(1, 2**bits, 2)))
    return Grid(bits=bits, encoding="twos-complement")


def table(levels: tuple[int, ...]) -> Grid:
    """Any 4, 8, ..., 256 ascending integer levels, code by code.

    Raises:
        ConfigError: another number of levels, or levels that cannot be a table (see :class:`Grid`).
    """
    bits = len(levels).bit_length() - 1
    if len(levels) != 2**bits or not 2 <= bits <= 8:
        raise ConfigError(f"a table has 4, 8, ..., 256 levels, found {len(levels)}")
    return Grid(bits=bits, encoding="table", table=levels)


E2M1 = Grid(bits=4, magnitudes=(0, 1, 2, 3, 4, 6, 8, 12))
"""The element type of MXFP4 (OCP Microscaling 1.0), in units of one half."""
