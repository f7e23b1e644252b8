"""A packed weight as the kernels take it: one object at their border, cheap enough to be made at every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from potq.numerics.tensor import storage

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from potq.config import Activations
    from potq.numerics.scheme import QuantScheme
    from potq.numerics.tensor import QuantizedWeight


Product: TypeAlias = "Callable[[Tensor, Tensor | None, Activations], Tensor]"
"""Of an input, a bias and how to round the input, with one weight."""


class PackedWeight(NamedTuple):
    """The tensors of a weight ``(rows, columns)`` and how to read them.

    A tuple, since an embedding makes one at every call: a :class:`~potq.numerics.tensor.QuantizedWeight`, which checks
    itself, costs 11 us. Tensors are checked when a backend prepares the weight (:meth:`check`).

    Attributes:
        packed: uint8 ``(rows, row bytes)``, the layout of :mod:`potq.numerics.packing`.
        scale: float16 or uint8 (E8M0), as the scheme stores them.
        scheme: how to read them.
        columns: inputs of a row; the row's bytes do not tell, since they are padded.
        row_scale: float16 ``(rows, 1)`` if the scheme has row scales, else None.
    """

    packed: Tensor
    scale: Tensor
    scheme: QuantScheme
    columns: int
    row_scale: Tensor | None = None

    @classmethod
    def of(cls, weight: QuantizedWeight) -> PackedWeight:
        """The same weight; tensors are shared."""
        return cls(weight.packed, weight.scale, weight.scheme, weight.shape[1], weight.row_scale)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.packed), self.columns

    def rows(self, ids: Tensor) -> PackedWeight:
        """Rows ``ids`` (1-D).

        Raises:
            IndexError: an id outside the weight; unlike ``packed[ids]``, negative ones are.
        """
        packed, row_scale = self.packed.index_select(0, ids), self.row_scale
        scale = self.scale.index_select(0, ids) if len(self.scale) > 1 else self.scale
        row_scale = None if row_scale is None else row_scale.index_select(0, ids)
        return self._replace(packed=packed, scale=scale, row_scale=row_scale)

    def check(self, device_type: str) -> None:
        """Compare codes and scales with the scheme; kernels would read past others.

        Raises:
            RuntimeError: other shapes, dtypes or devices than such a weight has.
        """
        stored = storage(self.shape, self.scheme)
        expected = stored["packed"], stored["scale"]
        found = (tuple(self.packed.shape), self.packed.dtype), (tuple(self.scale.shape), self.scale.dtype)
        devices = {self.packed.device, self.scale.device}
        if found != expected or len(devices) > 1 or self.packed.device.type != device_type:
            raise RuntimeError(
                f"a weight of shape {self.shape} in {self.scheme.name} has codes and scales {expected} "
                f"on {device_type.upper()}, found {found} on {self.packed.device} and {self.scale.device}"
            )


def check_device(input: Tensor, device: torch.device) -> None:
    """Raises RuntimeError if ``input`` is not on ``device``, where the weight is."""
    if input.device != device:
        raise RuntimeError(f"the input is on {input.device}, the packed weight on {device}; move one of them")


def check_input(input: Tensor, shape: tuple[int, int], device: torch.device) -> None:
    """Raises RuntimeError if ``input`` is not on ``device``, where the weight of ``shape`` is, or not as wide."""
    check_device(input, device)
    if input.shape[-1] != shape[1]:
        raise RuntimeError(f"an input of shape {tuple(input.shape)} does not fit a weight of shape {shape}")
