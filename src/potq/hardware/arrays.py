"""Constant arrays of C, and how many bytes they take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_PER_LINE = 16
_TYPES = {"int8_t": 1, "uint8_t": 1, "char": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4, "uint32_t": 4, "potq_merge": 8}


class Arrays:
    """Text of a C file of arrays; ``nbytes`` is what a linker will put into flash, but for alignment."""

    def __init__(self, *headers: str) -> None:
        self._text = ["#include <stddef.h>", ""] + [f'#include "{header}"' for header in headers]
        self.nbytes = 0

    @property
    def text(self) -> str:
        return "\n".join(self._text) + "\n"

    def add(self, name: str, kind: str, values: Sequence[int] | NDArray[np.generic], *, local: bool = True) -> str:
        """An array of whole numbers; returns its name. C has no empty arrays: the caller sees to an entry."""
        numbers = [str(value) + "u" * kind.startswith("u") for value in np.asarray(values).ravel().tolist()]
        return self.add_text(name, kind, numbers, local=local)

    def add_text(self, name: str, kind: str, entries: Sequence[str], *, local: bool = True) -> str:
        """An array whose entries are C already."""
        lines = [", ".join(entries[start : start + _PER_LINE]) for start in range(0, len(entries), _PER_LINE)]
        storage = "static const" if local else "const"
        self._text.append(f"{storage} {kind} {name}[] = {{\n" + ",\n".join(lines) + "};")
        self.nbytes += _TYPES[kind] * len(entries)
        return name

    def write(self, line: str) -> None:
        """A line of C."""
        self._text.append(line)
