"""The file kernels.c: for every grid, the few lines that forms need of it. Levels become shifts and sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from potq.hardware.kernels import Form, affine, shift_pattern
from potq.hardware.matrix import IntegerMatrix


class KernelSource:
    """Collects the kernels that matrices use, each once."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, tuple[int, ...], int], str] = {}
        self._text = ['#include "table_kernels.h"\n']

    @property
    def names(self) -> list[str]:
        return list(self._names.values())

    @property
    def text(self) -> str:
        return "\n".join(self._text)

    def use(self, form: Form, matrix: IntegerMatrix) -> str:
        """The C name of a kernel of this form for the matrix's levels."""
        levels = () if form.layout in ("BYTES", "QUADS") or form.name == "multiply" else matrix.levels
        key = (form.name, levels, matrix.bits)
        if key not in self._names:
            self._names[key] = f"potq_{form.name}_{len(self._names)}"
            self._text.append(_definition(self._names[key], form, matrix))
        return self._names[key]


def _definition(name: str, form: Form, matrix: IntegerMatrix) -> str:
    if form.layout in ("BYTES", "QUADS"):
        return f"POTQ_{form.name.upper()}({name})\n"
    return _DEFINITIONS[form.name](name, matrix.bits, matrix.levels)


def _shift(name: str, bits: int, levels: tuple[int, ...]) -> str:
    pattern = shift_pattern(levels)
    assert pattern is not None
    return f"POTQ_SHIFT_ZERO({name}, {bits})\n" if pattern[0] else f"POTQ_SHIFT_POWER({name}, {bits}, {pattern[1]})\n"


def _test_and_add(name: str, bits: int, levels: tuple[int, ...]) -> str:
    constant, weights, _ = _affine(levels, bits)
    return _fill(name, (*weights, constant), "uint32_t") + f"POTQ_TEST_AND_ADD({name}, {bits}, {name}_fill)\n"


def _planes(name: str, bits: int, levels: tuple[int, ...]) -> str:
    constant, weights, _ = _affine(levels, bits)
    return _combine(name, (*weights, constant)) + f"POTQ_PLANES_OF({name}, {bits}, {int(constant != 0)}, {name}_combine)\n"


def _affine(levels: tuple[int, ...], bits: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    found = affine(levels, bits)
    assert found is not None
    return found


_DEFINITIONS: Mapping[str, Callable[[str, int, tuple[int, ...]], str]] = {
    "shift": _shift,
    "test_and_add": _test_and_add,
    "buckets": lambda name, bits, levels: _combine(name, levels) + f"POTQ_BUCKETS({name}, {bits}, {name}_combine)\n",
    "table": lambda name, bits, levels: _fill(name, levels) + f"POTQ_TABLE({name}, {bits}, {name}_fill)\n",
    "pairs": lambda name, bits, levels: _fill(name, levels) + f"POTQ_PAIRS_OF({name}, {bits}, {name}_fill)\n",
    "planes": _planes,
    "multiply": lambda name, bits, _: f"POTQ_MULTIPLY({name}, {bits})\n",
    "dual": lambda name, _, levels: _pairs_of_levels(name, levels) + f"POTQ_DUAL({name}, {name}_levels)\n",
}


def _combine(name: str, levels: tuple[int, ...]) -> str:
    """A function: the sum of ``b[i]`` times ``levels[i]``."""
    lines = [f"static uint32_t {name}_combine(const uint32_t *b) {{", "  uint32_t sum = 0;", "  uint32_t t;"]
    for size in sorted({abs(level) for level in levels} - {0}):
        parts = "".join(f" {'+' if level > 0 else '-'} b[{i}]" for i, level in enumerate(levels) if abs(level) == size)
        lines += [f"  t = 0u{parts};", f"  sum += {product(size, 't')};"]
    return "\n".join([*lines, "  return sum;", "}\n"])


def _fill(name: str, levels: tuple[int, ...], kind: str = "int16_t") -> str:
    """A function: the products of ``v`` with all levels."""
    cast = "" if kind == "uint32_t" else f"({kind})(int32_t)"
    lines = [f"static inline void {name}_fill({kind} *t, uint32_t v) {{"]
    for i, level in enumerate(levels):
        given = f"0u - p{levels.index(-level)}" if level and -level in levels[:i] else product(level, "v")
        lines += [f"  const uint32_t p{i} = {given};", f"  t[{i}] = {cast}p{i};"]
    return "\n".join([*lines, "}\n"])


def _pairs_of_levels(name: str, levels: tuple[int, ...]) -> str:
    """A table: of every byte, the levels of its two codes as halves of a word."""
    words = [f"0x{((second & 0xFFFF) << 16) | (first & 0xFFFF):08x}u" for second in levels for first in levels]
    lines = [", ".join(words[start : start + 8]) for start in range(0, len(words), 8)]
    return f"static const uint32_t {name}_levels[] = {{\n" + ",\n".join(lines) + "};\n"


def product(level: int, variable: str) -> str:
    """``level`` times a variable in C, by shifts and sums of the level's non-adjacent form.

    >>> product(7, "t"), product(-12, "t"), product(0, "t")
    ('(t << 3) - t', '0u - (t << 4) + (t << 2)', '0u')
    """
    terms = []
    shift, left = 0, level
    while left:
        if left & 1:
            digit = 2 - (left & 3)  # 1 or -1
            terms.append((digit, f"({variable} << {shift})" if shift else variable))
            left -= digit
        left >>= 1
        shift += 1
    terms.reverse()
    text = "".join(f" {'+' if digit > 0 else '-'} {term}" for digit, term in terms)
    if not text:
        return "0u"
    return text[3:] if text.startswith(" + ") else f"0u{text}"
