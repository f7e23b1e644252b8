"""How many bits a sum of products needs: from the grid's levels and the number of products, with nothing to spare."""

from __future__ import annotations

from potq.numerics.grid import Grid

Range = tuple[int, int]
"""The least and the largest value."""


def activation_range(bits: int) -> Range:
    """Of a two's complement integer of so many bits."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def product_range(grid: Grid, activation_bits: int) -> Range:
    """Of a level times an activation."""
    corners = [level * end for level in (min(grid.levels), max(grid.levels)) for end in activation_range(activation_bits)]
    return min(corners), max(corners)


def signed_bits(low: int, high: int) -> int:
    """The least width of a two's complement integer that holds everything from ``low`` to ``high``.

    Example:
        >>> signed_bits(-128, 127), signed_bits(-127, 128)
        (8, 9)
    """
    return 1 + max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0)


def accumulator_bits(grid: Grid, products: int, activation_bits: int = 8) -> int:
    """The least width that holds every sum of so many products.

    Example:
        >>> from potq import PRESETS
        >>> [accumulator_bits(PRESETS[name].grid, 64) for name in ("pot3", "int4", "pot4")]
        [17, 18, 21]
    """
    low, high = product_range(grid, activation_bits)
    return signed_bits(products * low, products * high)
