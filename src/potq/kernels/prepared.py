"""What backends make of a weight at its first product: kept beside its tensors, and made anew when they change.

An entry goes when its packed tensor does, so state dicts, copies and casts never see it. A write is noticed by torch's
counter; through ``.data``, or into an inference tensor, nobody can see one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from potq.kernels.weight import PackedWeight
from potq.numerics.scheme import QuantScheme

T = TypeVar("T")


@dataclass(eq=False)
class _Entry(Generic[T]):
    """What was made, and of what."""

    made: T
    packed: weakref.ref[Tensor]
    scale: weakref.ref[Tensor]
    states: tuple[tuple[int, int], tuple[int, int]]
    scheme: QuantScheme
    columns: int

    def is_of(self, weight: PackedWeight) -> bool:
        packed, scale, scheme, columns, _ = weight
        same = self.packed() is packed and self.scale() is scale and self.states == (_state(packed), _state(scale))
        return same and self.columns == columns and (self.scheme is scheme or self.scheme == scheme)


def _state(tensor: Tensor) -> tuple[int, int]:
    """Changes when the tensor is written to or given other memory. Inference tensors do not count writes."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


class Prepared(Generic[T]):
    """One backend's table of prepared weights. Row scales are not part of what is prepared.

    Args:
        make: of a weight.
    """

    def __init__(self, make: Callable[[PackedWeight], T]) -> None:
        self._make = make
        self._entries: dict[int, _Entry[T]] = {}  # by the id of the packed tensor

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, weight: PackedWeight) -> T:
        """This weight, made ready at first use."""
        key = id(weight.packed)
        entry = self._entries.get(key)
        if entry is None or not entry.is_of(weight):
            entry = self._entries[key] = self._entry(weight)
            weakref.finalize(weight.packed, self._forget, key, weakref.ref(entry))
        return entry.made

    def _entry(self, weight: PackedWeight) -> _Entry[T]:
        packed, scale, scheme, columns, _ = weight
        made = self._make(weight)
        return _Entry(made, weakref.ref(packed), weakref.ref(scale), (_state(packed), _state(scale)), scheme, columns)

    def _forget(self, key: int, entry: weakref.ref[_Entry[T]]) -> None:
        if self._entries.get(key) is entry():
            self._entries.pop(key, None)
