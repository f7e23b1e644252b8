"""What a unit is to compute: the grid, how wide activations are, how many products a group and a dot product have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from potq.errors import ConfigError
from potq.hardware.rtl.product import Product, Structure, build, possible
from potq.hardware.rtl.widths import accumulator_bits, product_range, signed_bits
from potq.numerics.grid import Grid
from potq.numerics.scheme import QuantScheme, ScaleDtype

MANTISSA_BITS = 11  # of a float16, the hidden one counted


@dataclass(frozen=True)
class Design:
    """A family of units on one grid. Widths follow from it; nothing is wider than the largest sum needs.

    Attributes:
        name: what module names begin with.
        structure: how one product is made (see :func:`potq.hardware.rtl.product.possible`).
        activation_bits: two's complement.
        group: products that share a scale, and that one accumulator sums.
        lanes: products a cycle of the dot product; it divides ``group``.
        groups: group sums that the scaling unit adds up at most, such as those of a row.
        shift_bits: of the group's exponent below the row's largest one.
        chained: sums one after another, on the carry chains of FPGAs, instead of a tree of carry-save adders.

    Raises:
        ConfigError: a size that cannot be, or a structure that the grid cannot have.
    """

    name: str
    grid: Grid
    structure: Structure
    scale_dtype: ScaleDtype = "float16"
    signed_scale: bool = False
    activation_bits: int = 8
    group: int = 64
    lanes: int = 16
    groups: int = 64
    shift_bits: int = 4
    chained: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]\w*", self.name):
            raise ConfigError(f"{self.name!r} cannot begin the name of a module; use small letters, digits and _")
        for what, value, low, high in (
            ("activation_bits", self.activation_bits, 2, 16),
            ("lanes", self.lanes, 1, 1024),
            ("group", self.group, 1, 1 << 16),
            ("groups", self.groups, 1, 1 << 16),
            ("shift_bits", self.shift_bits, 1, 8),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{what} must be {low} to {high}, found {value}")
        if self.group % self.lanes:
            raise ConfigError(f"{self.lanes} lanes do not divide a group of {self.group}; choose another number of lanes")
        _ = self.product

    @cached_property
    def product(self) -> Product:
        return build(self.grid, self.structure, self.activation_bits)

    @property
    def sum_bits(self) -> int:
        """Of the sum of a group."""
        return accumulator_bits(self.grid, self.group, self.activation_bits)

    @property
    def total_bits(self) -> int:
        """Of the sum of scaled groups: each is the sum times an 11-bit mantissa, shifted to the right."""
        low, high = (self.group * end * self.largest_mantissa for end in product_range(self.grid, self.activation_bits))
        least, most = (min(low, -high), max(high, -low)) if self.signed_scale else (low, high)
        return signed_bits(self.groups * least, self.groups * most)

    @property
    def largest_mantissa(self) -> int:
        """Of a float16 scale all 11 bits; a power of two has the hidden one alone."""
        return (1 << MANTISSA_BITS) - 1 if self.scale_dtype == "float16" else 1 << (MANTISSA_BITS - 1)

    @property
    def start(self) -> int:
        """What an accumulator starts with: the constants of all products of a group."""
        return self.group * self.product.constant % (1 << self.sum_bits)


def design_of(
    scheme: QuantScheme,
    *,
    name: str | None = None,
    structure: Structure | None = None,
    activation_bits: int = 8,
    lanes: int = 16,
    chained: bool = False,
) -> Design:
    """The units for a scheme's grid, group and scales.

    Raises:
        ConfigError: see :class:`Design`; a trellis; or one scale per row or tensor, which gives no size of a group.

    Example:
        >>> from potq import QuantScheme
        >>> design = design_of(QuantScheme("pot3s"))
        >>> design.name, design.structure, design.sum_bits
        ('pot3s_g64', 'shift', 18)
    """
    if scheme.trellis:
        raise ConfigError(f"{scheme.name}: no unit decodes a trellis; take its grid alone, trellis=False")
    if not isinstance(scheme.group_size, int):
        raise ConfigError(
            f"{scheme.name}: the accumulator's width follows from the group, so a number must be given, such as "
            f"{scheme.name.split('-')[0]}:group_size=64"
        )
    return Design(
        name=name or re.sub(r"\W+", "_", scheme.name).lower(),
        grid=scheme.grid,
        structure=structure or possible(scheme.grid)[0],
        scale_dtype=scheme.scale_dtype,
        signed_scale=scheme.signed_scale,
        activation_bits=activation_bits,
        group=scheme.group_size,
        lanes=lanes,
        chained=chained,
    )
