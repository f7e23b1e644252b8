"""One product of a level and an activation, as unsigned vectors that an adder tree has still to sum.

All structures keep one promise: ``level * activation == sum(terms) + constant``. Two things make that cheap in hardware.

* A negative term is the one's complement, and the one that it lacks is a term of its own. So a product has no carry chain.
* A signed vector is its unsigned reading with the sign bit inverted, minus a constant. So no adder tree extends signs, and
  the constants of a whole group are what its accumulator starts with: they cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from potq.errors import ConfigError
from potq.hardware.rtl.decode import Decoder, Values, plain_bit
from potq.hardware.rtl.steps import Shifts, one_step, two_steps, used_codes
from potq.hardware.rtl.widths import signed_bits
from potq.numerics.grid import Grid

Structure = Literal["shift", "two-shifts", "triple-shift", "booth", "baugh-wooley", "multiply"]
STRUCTURES: tuple[Structure, ...] = get_args(Structure)
_SHIFTING: tuple[Structure, ...] = ("shift", "two-shifts", "triple-shift")


@dataclass(frozen=True)
class Vector:
    """An unsigned expression and its width."""

    expression: str
    width: int


@dataclass(frozen=True)
class Product:
    """Statements over ``code`` and ``activation``, and the terms whose sum, plus ``constant``, is the product."""

    lines: tuple[str, ...]
    terms: tuple[Vector, ...]
    constant: int


def possible(grid: Grid) -> tuple[Structure, ...]:
    """The structures that can multiply by every level of ``grid``, the most frugal one first.

    Example:
        >>> from potq import PRESETS
        >>> possible(PRESETS["pot3"].grid)[0], possible(PRESETS["apot4"].grid)[0], possible(PRESETS["int4"].grid)[0]
        ('shift', 'two-shifts', 'baugh-wooley')
    """
    found: list[Structure] = []
    if grid.encoding != "twos-complement":
        if grid.is_power_of_two:
            found.append("shift")
        elif _triples(grid) is not None:
            found.append("triple-shift")
        if grid.terms == 2:
            found.append("two-shifts")
    return (*found, "baugh-wooley", "booth", "multiply")


def contenders(grid: Grid) -> tuple[Structure, ...]:
    """Those among them that may be the smallest: what shifts, where the grid allows it, else the multipliers.

    ``"multiply"`` is not among them: on standard cells it is far larger than the others.
    """
    structures = possible(grid)
    shifting = tuple(structure for structure in structures if structure in _SHIFTING)
    return shifting or tuple(structure for structure in structures if structure != "multiply")


def build(grid: Grid, structure: Structure, activation_bits: int) -> Product:
    """The product of ``grid`` in a structure that it can have.

    Raises:
        ConfigError: it cannot have it.
    """
    if structure not in possible(grid):
        raise ConfigError(
            f"structure {structure!r} cannot multiply by the levels {grid.levels}; choose one of {', '.join(possible(grid))}"
        )
    return _BUILDERS[structure](grid, activation_bits)


# ---- shifts


def _shift(grid: Grid, bits: int) -> Product:
    shifts = one_step(grid)
    assert shifts is not None
    return _shifted(grid, (shifts,), bits)


def _two_shifts(grid: Grid, bits: int) -> Product:
    shifts = two_steps(grid)
    assert shifts is not None
    return _shifted(grid, shifts, bits)


def _shifted(grid: Grid, terms: tuple[Shifts, ...], bits: int) -> Product:
    decoder, vectors, constant = Decoder(grid.bits), [], 0
    for place, shifts in enumerate(terms):
        mark = f"_{place}" if len(terms) > 1 else ""
        nonzero = decoder.flag(f"nonzero{mark}", shifts.nonzero, "whether this term is there at all")
        negative = decoder.flag(f"negative{mark}", shifts.negative, "negated: one's complement, and a one to add")
        decoder.lines += [
            f"wire kept{mark} = {nonzero} ^ {negative};  // what a bit of one of the activation becomes",
            f"wire [{bits - 1}:0] turned{mark} =",
            f"  (activation & {{{bits}{{kept{mark}}}}}) | (~activation & {{{bits}{{{negative}}}}});",
        ]
        added, minus = _placed(decoder, f"turned{mark}", bits, negative, shifts, mark)
        vectors += added
        constant += minus
    return Product(tuple(decoder.lines), tuple(vectors), constant)


def _triple_shift(grid: Grid, bits: int) -> Product:
    found = _triples(grid)
    assert found is not None
    multiples, shifts = found
    decoder = Decoder(grid.bits)
    once = decoder.flag("once", [None if m is None else m & 1 for m in multiples], "adds the activation")
    twice = decoder.flag("twice", [None if m is None else m >> 1 for m in multiples], "adds it doubled")
    negative = decoder.flag("negative", shifts.negative, "negated: one's complement, and a one to add")
    wide = bits + 2
    decoder.lines += [
        f"wire [{wide - 1}:0] one = {{{{2{{activation[{bits - 1}]}}}}, activation}} & {{{wide}{{{once}}}}};",
        f"wire [{wide - 1}:0] two = {{activation[{bits - 1}], activation, 1'b0}} & {{{wide}{{{twice}}}}};",
        f"wire [{wide - 1}:0] turned_multiple = (one + two) ^ {{{wide}{{{negative}}}}};",
    ]
    vectors, constant = _placed(decoder, "turned_multiple", wide, negative, shifts, "")
    return Product(tuple(decoder.lines), tuple(vectors), constant)


def _triples(grid: Grid) -> tuple[Values, Shifts] | None:
    """Every level as a multiple of 0 to 3, then a shift; None if some level is another multiple.

    Twice a level shifted by one less stands for the level itself: so the shifter is one stage shorter, as the hidden bit of
    a floating-point format has it.
    """
    multiples: list[int | None] = []
    steps: list[tuple[int, bool] | None] = []
    for level, used in zip(grid.levels, used_codes(grid), strict=True):
        magnitude = abs(level)
        shift = (magnitude & -magnitude).bit_length() - 1 if magnitude else 0
        odd = magnitude >> shift
        if odd not in (0, 1, 3):
            return None
        doubled = odd == 1 and shift > 0
        multiples.append((2 if doubled else odd) if used else None)
        steps.append((shift - doubled, level < 0) if magnitude else None)
    return multiples, Shifts(tuple(steps), used_codes(grid))


def _placed(decoder: Decoder, name: str, width: int, negative: str, shifts: Shifts, mark: str) -> tuple[list[Vector], int]:
    """The vector called ``name`` shifted as the code says, and the one of a negative: terms, and their constant."""
    distances = [distance for distance in shifts.distances if distance is not None]
    base = _base(shifts, decoder.bits)
    current, reach = name, 0
    for position in range((max(distances) - base).bit_length()):
        amount = 1 << position
        by = decoder.flag(f"by{amount}{mark}", shifts.bit(position, base), f"shifted by {amount}")
        if by == "1'b0":
            continue
        top, stage = width + reach - 1, f"shifted{amount}{mark}"
        filled = f"{{{current}, {{{amount}{{{negative}}}}}}}"
        kept = f"{{{{{amount}{{{current}[{top}]}}}}, {current}}}"
        decoder.lines.append(f"wire [{top + amount}:0] {stage} = {by} ? {filled} : {kept};")
        current, reach = stage, reach + amount
    drop = max(0, min(distances) - base)  # positions that no code uses
    top = width + max(distances) - base - 1
    low, zeros = drop, base + drop
    vector = f"{{~{current}[{top}], {current}[{top - 1}:{low}]" + (f", {zeros}'b0}}" if zeros else "}")
    found = [Vector(vector, top + 1 - low + zeros)]
    if negative != "1'b0":
        found.append(Vector(f"{{{negative}, {zeros}'b0}}" if zeros else negative, 1 + zeros))
    return found, -(1 << (top - low + zeros))


def _base(shifts: Shifts, code_bits: int) -> int:
    """The distance that counts as none: the one that lets most bits of the distance be bits of the code."""
    distances = [distance for distance in shifts.distances if distance is not None]

    def decoded(base: int) -> int:
        bits = range((max(distances) - base).bit_length())
        return sum(plain_bit(shifts.bit(bit, base), code_bits) is None for bit in bits)

    return min((min(distances), min(distances) - 1), key=decoded)


# ---- multipliers: baselines, and what grids of many terms take


def _level(decoder: Decoder, grid: Grid) -> tuple[str, int]:
    """The level as a two's complement number, and its width."""
    if grid.encoding == "twos-complement":
        return "code", grid.bits
    width = signed_bits(min(grid.levels), max(grid.levels))
    levels = [level if used else None for level, used in zip(grid.levels, used_codes(grid), strict=True)]
    return decoder.number("level", levels, width, "what the code stands for"), width


def _booth(grid: Grid, bits: int) -> Product:
    decoder = Decoder(grid.bits)
    level, width = _level(decoder, grid)
    lines, terms, constant = booth_rows(level, width, "activation", bits, negative="1'b0")
    return Product((*decoder.lines, *lines), terms, constant)


def booth_rows(
    multiplier: str, width: int, multiplicand: str, bits: int, *, negative: str
) -> tuple[tuple[str, ...], tuple[Vector, ...], int]:
    """Radix-4 Booth: a row of -2 to 2 multiplicands for every two bits of a signed multiplier.

    ``negative`` is a signal that negates the product, or a constant.
    """
    digits = (width + 1) // 2
    sign = f"{multiplier}[{width - 1}], " if width % 2 else ""
    lines = [f"wire [{2 * digits}:0] recoded = {{{sign}{multiplier}, 1'b0}};"]
    terms = []
    for digit in range(digits):
        three, row = f"recoded[{2 * digit + 2}:{2 * digit}]", f"row_{digit}"
        turned = f"recoded[{2 * digit + 2}]" + (f" ^ {negative}" if negative != "1'b0" else "")
        lines += [
            f"wire one_{digit} = recoded[{2 * digit}] ^ recoded[{2 * digit + 1}];",
            f"wire two_{digit} = {three} == 3'b011 || {three} == 3'b100;",
            f"wire minus_{digit} = {turned};",
            f"wire [{bits}:0] {row} = (({{{bits + 1}{{one_{digit}}}}} & {{{multiplicand}[{bits - 1}], {multiplicand}}})",
            f"  | ({{{bits + 1}{{two_{digit}}}}} & {{{multiplicand}, 1'b0}})) ^ {{{bits + 1}{{minus_{digit}}}}};",
        ]
        zeros = f", {2 * digit}'b0" if digit else ""
        terms.append(Vector(f"{{~{row}[{bits}], {row}[{bits - 1}:0]{zeros}}}", bits + 1 + 2 * digit))
    ones = ", 1'b0, ".join(f"minus_{digit}" for digit in reversed(range(digits)))
    terms.append(Vector(f"{{{ones}}}", 2 * digits - 1))
    return tuple(lines), tuple(terms), -sum(1 << (bits + 2 * digit) for digit in range(digits))


def _baugh_wooley(grid: Grid, bits: int) -> Product:
    decoder = Decoder(grid.bits)
    level, width = _level(decoder, grid)
    terms, top = [], bits - 1
    for row in range(width):
        low = f"activation[{top - 1}:0] & {{{top}{{{level}[{row}]}}}}"
        high = f"activation[{top}] & {level}[{row}]"
        both = f"~({high}), {low}" if row < width - 1 else f"{high}, ~({low})"
        zeros = f", {row}'b0" if row else ""
        terms.append(Vector(f"{{{both}{zeros}}}", bits + row))
    constant = -sum(1 << (row + top) for row in range(width - 1)) - sum(1 << (width - 1 + bit) for bit in range(top))
    return Product(tuple(decoder.lines), tuple(terms), constant)


def _multiply(grid: Grid, bits: int) -> Product:
    decoder = Decoder(grid.bits)
    level, width = _level(decoder, grid)
    top = width + bits - 1
    line = f"wire signed [{top}:0] product = $signed({level}) * $signed(activation);  // for DSP blocks"
    vector = Vector(f"{{~product[{top}], product[{top - 1}:0]}}", top + 1)
    return Product((*decoder.lines, line), (vector,), -(1 << top))


_BUILDERS: Mapping[Structure, Callable[[Grid, int], Product]] = {
    "shift": _shift,
    "two-shifts": _two_shifts,
    "triple-shift": _triple_shift,
    "booth": _booth,
    "baugh-wooley": _baugh_wooley,
    "multiply": _multiply,
}
