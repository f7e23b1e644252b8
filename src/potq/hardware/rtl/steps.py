"""A level as signed powers of two: which shifts a shifting product has to make, for every code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product as choices

from potq.numerics.grid import Grid, shift_terms

Step = tuple[int, bool] | None
"""A shift, and whether what is shifted is negated; None adds nothing."""


@dataclass(frozen=True)
class Shifts:
    """One term of a shifting product: a step for every code; an unused code has the step of nobody's interest.

    Attributes:
        steps: by code.
        used: by code, whether a format ever writes it.
    """

    steps: tuple[Step, ...]
    used: tuple[bool, ...]

    @property
    def nonzero(self) -> list[int | None]:
        return [int(step is not None) if used else None for step, used in zip(self.steps, self.used, strict=True)]

    @property
    def negative(self) -> list[int | None]:
        return [None if step is None or not used else int(step[1]) for step, used in zip(self.steps, self.used, strict=True)]

    @property
    def distances(self) -> list[int | None]:
        return [None if step is None or not used else step[0] for step, used in zip(self.steps, self.used, strict=True)]

    def bit(self, position: int, base: int) -> list[int | None]:
        """One bit of ``distance - base`` for every code."""
        return [None if distance is None else (distance - base) >> position & 1 for distance in self.distances]


def used_codes(grid: Grid) -> tuple[bool, ...]:
    return tuple(code not in grid.unused_codes for code in range(2**grid.bits))


def one_step(grid: Grid) -> Shifts | None:
    """The only term of a power-of-two grid, or None if some level needs more."""
    if not grid.is_power_of_two:
        return None
    steps = tuple(None if level == 0 else (abs(level).bit_length() - 1, level < 0) for level in grid.levels)
    return Shifts(steps, used_codes(grid))


def two_steps(grid: Grid) -> tuple[Shifts, Shifts] | None:
    """Two terms that make up every level, or None if some level needs three.

    Of the ways to write a level (``24 = 16 + 8 = 32 - 8``) those are taken that leave the fewest distances to choose from.
    """
    if grid.terms > 2:
        return None
    magnitudes = sorted({abs(level) for level in grid.levels} - {0})
    best = min(choices(*map(_ways, magnitudes)), key=_cost)
    chosen = dict(zip(magnitudes, best, strict=True))
    used = used_codes(grid)
    first = tuple(_turned(chosen[abs(level)][0], level) if level else None for level in grid.levels)
    second = tuple(_turned(chosen[abs(level)][1], level) if level else None for level in grid.levels)
    return Shifts(first, used), Shifts(second, used)


def _turned(step: Step, level: int) -> Step:
    return None if step is None else (step[0], step[1] != (level < 0))


def _ways(magnitude: int) -> list[tuple[Step, Step]]:
    """Every way to write it as one or two steps, the larger one first and positive."""
    found: list[tuple[Step, Step]] = []
    if shift_terms(magnitude) == 1:
        found.append(((magnitude.bit_length() - 1, False), None))
    for first in range(magnitude.bit_length() + 1):
        rest = magnitude - (1 << first)
        if rest and shift_terms(rest) == 1 and abs(rest) < 1 << first:
            found.append(((first, False), (abs(rest).bit_length() - 1, rest < 0)))
    return found


def _cost(ways: Sequence[tuple[Step, Step]]) -> tuple[int, int]:
    """How many distances both terms choose from, then how far they reach."""
    firsts, seconds = ({way[i][0] for way in ways if way[i] is not None} for i in (0, 1))  # type: ignore[index]
    return len(firsts) + len(seconds), max(firsts)
