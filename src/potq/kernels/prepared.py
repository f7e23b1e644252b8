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

from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import storage

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

    def is_of(self, packed: Tensor, scale: Tensor, scheme: QuantScheme, columns: int) -> bool:
        same = self.packed() is packed and self.scale() is scale and self.states == (_state(packed), _state(scale))
        return same and self.columns == columns and (self.scheme is scheme or self.scheme == scheme)


def _state(tensor: Tensor) -> tuple[int, int]:
    """Changes when the tensor is written to or given other memory. Inference tensors do not count writes."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


class Prepared(Generic[T]):
    """One backend's table of prepared weights.

    Args:
        make: of packed codes, stored scales, scheme and columns.
    """

    def __init__(self, make: Callable[[Tensor, Tensor, QuantScheme, int], T]) -> None:
        self._make = make
        self._entries: dict[int, _Entry[T]] = {}  # by the id of the packed tensor

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, packed: Tensor, scale: Tensor, scheme: QuantScheme, columns: int) -> T:
        """This weight, made ready at first use."""
        key = id(packed)
        entry = self._entries.get(key)
        if entry is None or not entry.is_of(packed, scale, scheme, columns):
            entry = self._entries[key] = self._entry(packed, scale, scheme, columns)
            weakref.finalize(packed, self._forget, key, weakref.ref(entry))
        return entry.made

    def _entry(self, packed: Tensor, scale: Tensor, scheme: QuantScheme, columns: int) -> _Entry[T]:
        made = self._make(packed, scale, scheme, columns)
        states = _state(packed), _state(scale)
        return _Entry(made, weakref.ref(packed), weakref.ref(scale), states, scheme, columns)

    def _forget(self, key: int, entry: weakref.ref[_Entry[T]]) -> None:
        if self._entries.get(key) is entry():
            self._entries.pop(key, None)


def check_storage(packed: Tensor, scale: Tensor, scheme: QuantScheme, columns: int, device_type: str) -> None:
    """Raise RuntimeError unless these are the tensors of such a weight, on one device: kernels would read past others."""
    stored = storage((len(packed), columns), scheme)
    expected = stored["packed"], stored["scale"]
    found = (tuple(packed.shape), packed.dtype), (tuple(scale.shape), scale.dtype)
    if found != expected or packed.device != scale.device or packed.device.type != device_type:
        raise RuntimeError(
            f"a weight of shape {(len(packed), columns)} in {scheme.name} has codes and scales {expected} "
            f"on {device_type.upper()}, found {found} on {packed.device} and {scale.device}"
        )
