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

T_co = TypeVar("T_co", covariant=True)


@dataclass(eq=False)
class Ready(Generic[T_co]):
    """What was made, and of what."""

    made: T_co
    packed: weakref.ref[Tensor]
    scale: weakref.ref[Tensor]
    at: tuple[int, int]  # where their memory was
    packed_version: int | None  # None of an inference tensor, which does not count writes
    scale_version: int | None
    scheme: QuantScheme
    columns: int

    def is_of(self, packed: Tensor, scale: Tensor) -> bool:
        """Whether it was made of these, as they are. Asked at every call of a module: no more is read than can change."""
        return (
            self.packed() is packed
            and self.scale() is scale
            and self.at == (packed.data_ptr(), scale.data_ptr())
            and (self.packed_version is None or self.packed_version == packed._version)
            and (self.scale_version is None or self.scale_version == scale._version)
        )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


class Prepared(Generic[T_co]):
    """One backend's table of prepared weights. Row scales are not part of what is prepared.

    Args:
        make: of a weight.
    """

    def __init__(self, make: Callable[[PackedWeight], T_co]) -> None:
        self._make = make
        self._entries: dict[int, Ready[T_co]] = {}  # by the id of the packed tensor

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, weight: PackedWeight) -> Ready[T_co]:
        """This weight, made ready at first use."""
        packed, scale, scheme, columns, _ = weight
        entry = self._entries.get(id(packed))
        if entry is None or not entry.is_of(packed, scale) or (entry.columns, entry.scheme) != (columns, scheme):
            entry = self._entries[id(packed)] = self._entry(weight)
            weakref.finalize(packed, self._forget, id(packed), weakref.ref(entry))
        return entry

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()

    def _entry(self, weight: PackedWeight) -> Ready[T_co]:
        packed, scale, scheme, columns, _ = weight
        made, at = self._make(weight), (packed.data_ptr(), scale.data_ptr())
        versions = _version(packed), _version(scale)
        return Ready(made, weakref.ref(packed), weakref.ref(scale), at, *versions, scheme, columns)

    def _forget(self, key: int, entry: weakref.ref[Ready[T_co]]) -> None:
        if self._entries.get(key) is entry():
            self._entries.pop(key, None)
