"""What a design must compute, in Python's integers: every product; sums and scaled sums, at the extremes and at random."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from potq.hardware.rtl.design import MANTISSA_BITS, Design
from potq.hardware.rtl.steps import used_codes
from potq.hardware.rtl.widths import activation_range, product_range, signed_bits


@dataclass(frozen=True)
class Field:
    """One signal of a vector; ``expected`` is compared, the others are driven."""

    name: str
    width: int


@dataclass(frozen=True)
class Vectors:
    """Words for one module: the fields of a word from the top down, and the values of each word."""

    fields: tuple[Field, ...]
    words: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        return sum(field.width for field in self.fields)

    def hex(self) -> str:
        """A line a word, as ``$readmemh`` reads it."""
        return "".join(f"{self._packed(word):x}\n" for word in self.words)

    def _packed(self, values: Sequence[int]) -> int:
        word = 0
        for field, value in zip(self.fields, values, strict=True):
            word = word << field.width | value & ((1 << field.width) - 1)
        return word


def product_vectors(design: Design) -> Vectors:
    """Every code that a format writes, times every activation."""
    low, high = activation_range(design.activation_bits)
    codes = [(code, level) for code, level in enumerate(design.grid.levels) if used_codes(design.grid)[code]]
    words = tuple((level * x, x, code) for code, level in codes for x in range(low, high + 1))
    width = signed_bits(*product_range(design.grid, design.activation_bits))
    fields = (Field("expected", width), Field("activation", design.activation_bits), Field("code", design.grid.bits))
    return Vectors(fields, words)


def sum_vectors(design: Design, kind: Literal["mac", "dot"], groups: int, seed: int = 0) -> Vectors:
    """Groups of products: the largest sum, the smallest one, then ``groups`` random ones."""
    lanes, plural = (1, "") if kind == "mac" else (design.lanes, "s")
    levels, rows = design.grid.levels, []
    for group in _groups(design, groups, random.Random(seed)):
        for start in range(0, design.group, lanes):
            part = group[start : start + lanes]
            last = start + lanes == design.group
            total = sum(levels[code] * x for code, x in group) if last else 0
            rows.append((total, int(last), int(start == 0), _side_by_side(part, design), _codes(part, design)))
    fields = (
        Field("expected", design.sum_bits),
        Field("compared", 1),
        Field("first", 1),
        Field(f"activation{plural}", lanes * design.activation_bits),
        Field(f"code{plural}", lanes * design.grid.bits),
    )
    return Vectors(fields, tuple(rows))


def scale_vectors(design: Design, rows: int, seed: int = 0) -> Vectors:
    """Rows of scaled sums: the largest, the smallest, then ``rows`` random ones. A field for every input that there is."""
    chosen, words = random.Random(seed), []
    fields = [Field("expected", design.total_bits), Field("first", 1), Field("shift", design.shift_bits)]
    fields.append(Field("sum", design.sum_bits))
    fields += [Field("mantissa", MANTISSA_BITS)] if design.scale_dtype == "float16" else []
    fields += [Field("negative", 1)] if design.signed_scale else []
    for row in _scaled_rows(design, rows, chosen):
        total = 0
        for place, (group, mantissa, negative, shift) in enumerate(row):
            total += (-group if negative else group) * mantissa >> shift
            inputs = [mantissa] * (design.scale_dtype == "float16") + [negative] * design.signed_scale
            words.append((total, int(place == 0), shift, group, *inputs))
    return Vectors(tuple(fields), tuple(words))


def _scaled_rows(design: Design, rows: int, chosen: random.Random) -> Iterator[list[tuple[int, int, int, int]]]:
    """Sum, mantissa, whether it is negative, and shift of every group."""
    low, high = (design.group * end for end in product_range(design.grid, design.activation_bits))
    most = design.largest_mantissa
    least = 0 if design.scale_dtype == "float16" else most
    signs = range(1 + design.signed_scale)
    for end in (high, low):
        for negative in signs:
            yield [(end, most, negative, 0)] * design.groups
    for _ in range(rows):
        yield [
            (
                chosen.randint(low, high),
                chosen.randint(least, most),
                chosen.choice(signs),
                chosen.randrange(1 << design.shift_bits),
            )
            for _ in range(design.groups)
        ]


Pair = tuple[int, int]
"""A code and an activation."""


def _groups(design: Design, groups: int, chosen: random.Random) -> Iterator[list[Pair]]:
    low, high = activation_range(design.activation_bits)
    used = [code for code, written in enumerate(used_codes(design.grid)) if written]
    every = [(code, x) for code in used for x in (low, high)]
    for pick in (max, min):
        yield [pick(every, key=lambda pair: design.grid.levels[pair[0]] * pair[1])] * design.group
    for _ in range(groups):
        yield [(chosen.choice(used), chosen.randint(low, high)) for _ in range(design.group)]


def _side_by_side(pairs: Iterable[Pair], design: Design) -> int:
    mask = (1 << design.activation_bits) - 1
    return sum((x & mask) << (design.activation_bits * lane) for lane, (_, x) in enumerate(pairs))


def _codes(pairs: Iterable[Pair], design: Design) -> int:
    return sum(code << (design.grid.bits * lane) for lane, (code, _) in enumerate(pairs))
