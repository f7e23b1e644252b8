"""The file kernels.c: for every grid, the few lines that forms need of it. Levels become shifts and sums."""

from __future__ import annotations

from potq.hardware.kernels import Form, affine, shift_pattern
from potq.hardware.matrix import IntegerMatrix


class KernelSource:
    """Collects the kernels that matrices use, each once."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, tuple[int, ...], int], str] = {}
        self._text = ['#include "kernels.h"\n\n#include <stddef.h>\n']

    @property
    def names(self) -> list[str]:
        return list(self._names.values())

    @property
    def text(self) -> str:
        return "\n".join(self._text)

    def use(self, form: Form, matrix: IntegerMatrix) -> str:
        """The C name of a kernel of this form for the matrix's levels."""
        levels = () if form.layout == "BYTES" or form.name == "multiply" else matrix.levels
        key = (form.name, levels, matrix.bits)
        if key not in self._names:
            self._names[key] = f"potq_{form.name}_{len(self._names)}"
            self._text.append(_definition(self._names[key], form, matrix))
        return self._names[key]


def _definition(name: str, form: Form, matrix: IntegerMatrix) -> str:
    bits, levels = matrix.bits, matrix.levels
    if form.name == "shift":
        pattern = shift_pattern(levels)
        assert pattern is not None
        return f"POTQ_SHIFT_ZERO({name}, {bits})\n" if pattern[0] else f"POTQ_SHIFT_POWER({name}, {bits}, {pattern[1]})\n"
    if form.name == "buckets":
        return _combine(name, levels) + f"POTQ_BUCKETS({name}, {bits}, {name}_combine)\n"
    if form.name == "table":
        return _fill(name, levels) + f"POTQ_TABLE({name}, {bits}, {name}_fill)\n"
    if form.name == "pairs":
        return _fill(name, levels) + f"POTQ_PAIRS_OF({name}, {name}_fill)\n"
    if form.name == "planes":
        found = affine(levels, bits)
        assert found is not None
        return (
            _combine(name, (*found[1], found[0])) + f"POTQ_PLANES_OF({name}, {bits}, {int(found[0] != 0)}, {name}_combine)\n"
        )
    arguments = f"{name}, {bits}" if form.name == "multiply" else name
    return f"POTQ_{form.name.upper()}({arguments})\n"


def _combine(name: str, levels: tuple[int, ...]) -> str:
    """A function: the sum of ``b[i]`` times ``levels[i]``."""
    lines = [f"static uint32_t {name}_combine(const uint32_t *b) {{", "  uint32_t sum = 0;", "  uint32_t t;"]
    for size in sorted({abs(level) for level in levels} - {0}):
        parts = "".join(f" {'+' if level > 0 else '-'} b[{i}]" for i, level in enumerate(levels) if abs(level) == size)
        lines += [f"  t = 0u{parts};", f"  sum += {product(size, 't')};"]
    return "\n".join([*lines, "  return sum;", "}\n"])


def _fill(name: str, levels: tuple[int, ...]) -> str:
    """A function: the products of ``v`` with all levels."""
    lines = [f"static void {name}_fill(int16_t *t, uint32_t v) {{"]
    lines += [f"  t[{i}] = (int16_t)(int32_t)({product(level, 'v')});" for i, level in enumerate(levels)]
    return "\n".join([*lines, "}\n"])


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
