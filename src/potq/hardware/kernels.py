"""Kernels of the C program: what each form takes, how it stores codes, and what it costs on which core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from potq.errors import ExportError
from potq.hardware.matrix import IntegerMatrix

Core = Literal["rv32i", "rv32im", "ibex", "serv", "cortex-m0", "cortex-m3", "cortex-m4", "generic"]
Codes = NDArray[np.unsignedinteger[Any]]

_UNIT = 32  # columns that every layout divides into
_INT16 = 32767


@dataclass(frozen=True)
class Form:
    """A way to sum levels times inputs.

    Attributes:
        name: of its macro, in lower case.
        layout: how codes are stored, a value of the C type ``potq_layout``.
        entries: of the table of the inputs, for every input and number of bits; None where there is no table.
        multiplies: whether it multiplies with levels.
        takes: whether it computes products with a matrix.
        constants: bytes of those that belong to a grid's kernel.
    """

    name: str
    layout: str
    entries: Callable[[int], int] | None
    multiplies: bool
    takes: Callable[[IntegerMatrix], bool]
    constants: int = 0

    def width(self, bits: int) -> int:
        """Bits that a weight takes."""
        return 4 if self.layout == "PAIRS" else bits

    def layout_of(self, bits: int) -> str:
        """The C name of the layout."""
        if self.layout == "PAIRS" and bits == 4:  # two codes a byte anyway
            return "POTQ_WORDS"
        return "POTQ_SPLIT" if self.layout == "WORDS" and bits == 3 else f"POTQ_{self.layout}"


def largest(matrix: IntegerMatrix) -> int:
    """The largest magnitude of a level."""
    return max(map(abs, matrix.levels))


def shift_pattern(levels: tuple[int, ...]) -> tuple[bool, int] | None:
    """Whether magnitudes 0, 1, 2, 4, ... (True, 1), or powers of ``2**stride`` (False, stride), stand behind a sign."""
    half = len(levels) // 2
    magnitudes = levels[:half]
    if levels[half:] != tuple(-level for level in magnitudes):
        return None
    if magnitudes == (0, *(1 << i for i in range(half - 1))):
        return True, 1
    stride = magnitudes[1].bit_length() - 1 if half > 1 else 1
    return (False, stride) if magnitudes == tuple(1 << (stride * i) for i in range(half)) else None


def affine(levels: tuple[int, ...], bits: int) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    """``levels`` as a constant and what every bit of a new code adds; the new code of each code."""
    distinct = sorted(set(levels))
    steps = {after - before for before, after in pairwise(distinct)}
    if len(distinct) == 1 << bits and len(steps) == 1:
        weights = tuple(steps.copy().pop() << bit for bit in range(bits))
        if levels == tuple(range(1 << (bits - 1))) + tuple(range(-(1 << (bits - 1)), 0)):
            return 0, (*weights[:-1], -weights[-1]), tuple(range(1 << bits))  # two's complement needs no constant
        return distinct[0], weights, tuple(distinct.index(level) for level in levels)
    if bits == 2 and len(distinct) == 4 and distinct[0] + distinct[3] == distinct[1] + distinct[2]:
        first = distinct[0]
        return first, (distinct[1] - first, distinct[2] - first), tuple(distinct.index(level) for level in levels)
    return None


def _shifts(matrix: IntegerMatrix) -> bool:
    """Sums are twice as large before the last shift."""
    return shift_pattern(matrix.levels) is not None and matrix.bound < 1 << 30


def _small(matrix: IntegerMatrix) -> bool:
    return matrix.bits in (2, 3, 4)


def _pairs(matrix: IntegerMatrix) -> bool:
    """Whether 16 bits hold the sum of two products."""
    return _small(matrix) and 2 * 127 * largest(matrix) <= _INT16


FORMS = {
    form.name: form
    for form in (
        Form(
            "shift", "WORDS", None, False, lambda m: _small(m) and shift_pattern(m.levels) is not None and m.bound < 1 << 30
        ),
        Form("test_and_add", "WORDS", None, False, lambda m: _small(m) and affine(m.levels, m.bits) is not None),
        Form("buckets", "WORDS", None, False, _small),
        Form("table", "WORDS", lambda bits: 1 << bits, False, lambda m: _small(m) and 127 * largest(m) <= _INT16),
        Form("pairs", "PAIRS", lambda bits: 1 << (2 * bits - 1), False, lambda m: m.bits > 2 and _pairs(m)),
        Form("planes", "PLANES", lambda bits: 32, False, lambda m: affine(m.levels, m.bits) is not None),
        Form("multiply", "WORDS", None, True, lambda m: _small(m) and largest(m) <= _INT16),
        Form("dual", "WORDS", lambda bits: 1, True, lambda m: m.bits == 4 and largest(m) <= _INT16, 1024),
        Form("multiply_bytes", "BYTES", None, True, lambda m: m.bits == 8 and largest(m) <= 128),
        Form("dual_bytes", "QUADS", lambda bits: 1, True, lambda m: m.bits == 8 and largest(m) <= 128),
        Form("add_bytes", "BYTES", None, False, lambda m: m.bits == 8 and largest(m) <= 128),
    )
}
"""Every form, by name."""

# Cycles a weight by bits, without the table of inputs, by benchmarks/hardware/cores.py. rv32i is PicoRV32 with a barrel
# shifter, rv32im the same with a fast multiplier, ibex has a single-cycle one; Cortex-M: instructions.
_Costs = dict[str, dict[int, float]]
_PICO: _Costs = {
    "shift": {4: 27.8, 3: 26.1, 2: 25.3},
    "test_and_add": {4: 45.6, 3: 35.2, 2: 24.1},
    "buckets": {4: 31.4, 3: 41.3, 2: 29.0},
    "table": {4: 21.8, 3: 29.9, 2: 20.8},
    "pairs": {4: 12.8, 3: 12.7},
    "planes": {8: 28.4, 4: 15.7, 3: 12.5, 2: 9.8},
    "add_bytes": {8: 119.1},
}
_M3: _Costs = {
    "shift": {4: 9.4, 3: 8.6, 2: 8.4},
    "test_and_add": {4: 15.1, 3: 11.7, 2: 8.0},
    "buckets": {4: 7.3, 3: 9.9, 2: 7.5},
    "table": {4: 6.3, 3: 9.1, 2: 6.1},
    "pairs": {4: 3.3, 3: 3.3},
    "planes": {8: 7.9, 4: 4.5, 3: 3.7, 2: 3.1},
    "multiply": {4: 4.8, 3: 9.9, 2: 5.7},
    "multiply_bytes": {8: 3.8},
    "add_bytes": {8: 37.1},
}
COSTS: dict[Core, _Costs] = {
    "rv32i": _PICO,
    "rv32im": _PICO | {"multiply": {4: 40.1, 3: 77.0, 2: 49.3}, "multiply_bytes": {8: 26.0}},
    "ibex": {
        "shift": {4: 10.7, 3: 10.3, 2: 9.4},
        "test_and_add": {4: 18.5, 3: 14.3, 2: 9.9},
        "buckets": {4: 11.6, 3: 14.9, 2: 10.7},
        "table": {4: 8.0, 3: 10.6, 2: 7.5},
        "pairs": {4: 4.6, 3: 4.7},
        "planes": {8: 10.6, 4: 5.9, 3: 4.8, 2: 3.5},
        "multiply": {4: 13.8, 3: 27.8, 2: 17.5},
        "multiply_bytes": {8: 8.8},
        "add_bytes": {8: 50.0},
    },
    "serv": {
        "shift": {4: 490.0, 3: 460.0, 2: 415.0},
        "test_and_add": {4: 668.0, 3: 513.0, 2: 349.0},
        "buckets": {4: 459.0, 3: 615.0, 2: 424.0},
        "table": {4: 330.0, 3: 470.0, 2: 318.0},
        "pairs": {4: 190.0, 3: 190.0},
        "planes": {8: 420.0, 4: 231.0, 3: 184.0, 2: 143.0},
        "add_bytes": {8: 2021.0},
    },
    "cortex-m0": {
        "shift": {4: 15.6, 3: 18.7, 2: 15.1},
        "test_and_add": {4: 17.2, 3: 14.8, 2: 9.2},
        "buckets": {4: 12.3, 3: 16.5, 2: 9.6},
        "table": {4: 8.6, 3: 16.1, 2: 8.0},
        "pairs": {4: 6.1, 3: 5.1},
        "planes": {8: 13.3, 4: 7.7, 3: 6.2, 2: 4.8},
        "multiply": {4: 11.8, 3: 17.5, 2: 10.9},
        "multiply_bytes": {8: 8.8},
        "add_bytes": {8: 42.2},
    },
    "cortex-m3": _M3,
    "cortex-m4": _M3 | {"dual": {4: 3.0}, "dual_bytes": {8: 2.7}},
    "generic": _M3,
}
# Bytes of a kernel's instructions, at most: of RISC-V (and any other core), and of Cortex-M.
_CODE: dict[str, tuple[int, int]] = {
    "shift": (2800, 1800),
    "test_and_add": (3200, 1300),
    "buckets": (3800, 1400),
    "table": (1800, 1400),
    "pairs": (1600, 1000),
    "planes": (900, 700),
    "multiply": (5000, 1300),
    "dual": (1900, 600),
    "multiply_bytes": (1400, 400),
    "dual_bytes": (3700, 900),
    "add_bytes": (400, 200),
}
TOGETHER: dict[Core, int] = {core: 2 if core.startswith("cortex") else 4 for core in COSTS}
"""Rows that kernels walk over at once: as many as registers hold."""
MULTIPLIES: dict[Core, bool] = {core: "multiply_bytes" in costs for core, costs in COSTS.items()}
"""Which cores have a multiplier."""


def code_bytes(form: Form, core: Core) -> int:
    """Bytes of a kernel's instructions, at most, as gcc -O2 makes them (``tests/hardware`` compiles them)."""
    return _CODE[form.name][core.startswith("cortex")]


def check_layout(matrix: IntegerMatrix) -> None:
    """Refuse what no kernel takes.

    Raises:
        ExportError: names the matrix, what it is and what would do.
    """
    columns = matrix.shape[1]
    if columns % _UNIT or (matrix.group % _UNIT and matrix.group < columns):
        raise ExportError(
            f"{matrix.name} has {columns} columns in groups of {matrix.group}; the C program takes multiples of {_UNIT} "
            "alone: quantize with such a group_size"
        )
    if not any(form.takes(matrix) for form in FORMS.values()):
        raise ExportError(
            f"{matrix.name} is {matrix.scheme}, of {matrix.bits} bits; the C program has kernels for grids of 2, 3 and 4 "
            "bits, and int8 for embeddings"
        )


class Saving(IntEnum):
    """What kernels leave out for memory: nothing, codes stored in more bits than they have, or tables in RAM."""

    NOTHING = 0
    FLASH = 1
    RAM = 2

    def allows(self, form: Form, bits: int) -> bool:
        if self is Saving.RAM:
            return form.entries is None
        return self is Saving.NOTHING or form.width(bits) == bits


def choose(matrix: IntegerMatrix, core: Core, *, strict: bool, saving: Saving = Saving.NOTHING) -> Form:
    """The cheapest form for a matrix on a core.

    Args:
        strict: none that multiplies with levels.
        saving: what memory the kernel may take.

    Raises:
        ExportError: no kernel takes the matrix.
    """
    check_layout(matrix)
    forms = [
        form
        for form in FORMS.values()
        if form.takes(matrix) and not (strict and form.multiplies) and saving.allows(form, matrix.bits)
    ]
    return min(forms, key=lambda form: cost(form, matrix, core))


def cost(form: Form, matrix: IntegerMatrix, core: Core) -> float:
    """Cycles for a product: of its weights, and of the table that it makes beforehand."""
    rows, columns = matrix.shape
    per_weight = COSTS[core].get(form.name, {}).get(matrix.bits, inf)
    # making an entry takes about as long as half a weight's product
    made = 0.0 if form.entries is None else 0.5 * per_weight * form.entries(matrix.bits) * columns
    return rows * columns * per_weight + made


def stored(matrix: IntegerMatrix, form: Form) -> tuple[Codes, tuple[int, ...]]:
    """The codes as the form's layout has them, 1-D, and the level of every code as it is stored."""
    codes: Codes = matrix.codes.astype(np.uint8)
    if form.layout in ("BYTES", "QUADS"):
        values: Codes = matrix.values().astype(np.int8).view(np.uint8)
        return _words(values, 8) if form.layout == "QUADS" else values.ravel(), ()
    levels = matrix.levels
    if form.name in ("planes", "test_and_add"):
        found = affine(levels, matrix.bits)
        assert found is not None
        codes = np.array(found[2], np.uint8)[codes]
        levels = tuple(level for _, level in sorted(zip(found[2], levels, strict=True)))
    if form.layout == "PLANES":
        return _planes(codes, matrix.bits, matrix.group), levels
    if form.layout == "PAIRS":
        return _words(codes[:, ::2] | codes[:, 1::2] << np.uint8(matrix.bits), 8), levels
    return (_split(codes) if matrix.bits == 3 else _words(codes, matrix.bits)), levels


def _words(codes: Codes, bits: int) -> Codes:
    parts = codes.reshape(-1, 32 // bits).astype(np.uint32)
    words: Codes = np.bitwise_or.reduce(parts << (bits * np.arange(32 // bits, dtype=np.uint32)), axis=1)
    return words


def _split(codes: Codes) -> Codes:
    three = np.uint8(3)
    low = _words(codes & three, 2).reshape(-1, 2)
    return np.column_stack([low, _words(codes >> np.uint8(2), 1)]).ravel()


def _planes(codes: Codes, bits: int, group: int) -> Codes:
    parts = []
    for start in range(0, codes.shape[1], group):
        block = codes[:, start : start + group]
        parts += [np.packbits((block >> np.uint8(bit)) & np.uint8(1), axis=1, bitorder="little") for bit in range(bits)]
    return _words(np.concatenate(parts, axis=1), 8)
