"""One quantized weight: packed codes, stored scales, logical shape, scheme."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potq import functional
from potq.errors import CheckpointError
from potq.packing import pack, padding_is_zero, unpack
from potq.scheme import QuantScheme, packed_row_bytes

_BLOCK = 1 << 18  # weights; larger temporaries leave holes in the heap between the packed weights


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight ``(out, in)`` in packed form.

    Attributes:
        packed: uint8 ``(out, row bytes)``, the layout of :mod:`potq.packing`.
        scale: float16 or uint8 (E8M0), ``scheme.scale_shape(out, in)``.
        shape: ``(out, in)``.
        scheme: how to read them.
    """

    packed: Tensor
    scale: Tensor
    shape: tuple[int, int]
    scheme: QuantScheme

    @classmethod
    def from_scale(cls, weight: Tensor, scale: Tensor, scheme: QuantScheme) -> QuantizedWeight:
        """Round ``weight`` ``(out, in)`` to the grid under stored ``scale`` and pack it."""
        packed = [
            pack(functional.quantize(weight[rows], _rows_of(scale, rows), scheme), scheme.grid.bits)
            for rows in _row_blocks(weight.shape)
        ]
        return cls(torch.cat(packed), scale, (weight.shape[0], weight.shape[1]), scheme)

    @classmethod
    def empty(cls, shape: tuple[int, int], scheme: QuantScheme, device: torch.device | str) -> QuantizedWeight:
        """Uninitialised storage of the right shapes, to be filled from a checkpoint."""
        packed_shape, scale_shape, scale_dtype = storage(shape, scheme)
        return cls(
            torch.empty(packed_shape, dtype=torch.uint8, device=device),
            torch.empty(scale_shape, dtype=scale_dtype, device=device),
            shape,
            scheme,
        )

    def codes(self) -> Tensor:
        """Unpacked codes, uint8 ``(out, in)``."""
        return unpack(self.packed, self.scheme.grid.bits, self.shape[1])

    def dequantize(self) -> Tensor:
        """Float32 weight ``(out, in)``, exact."""
        return functional.dequantize(self.codes(), self.scale, self.scheme)

    def energies(self, weight: Tensor) -> tuple[float, float]:
        """Sum of the squares of ``weight`` ``(out, in)``, and of the differences from it, without a copy as large as it."""
        bits, columns = self.scheme.grid.bits, self.shape[1]
        signal = noise = 0.0
        for rows in _row_blocks(weight.shape):
            codes = unpack(self.packed[rows], bits, columns)
            error = functional.dequantize(codes, _rows_of(self.scale, rows), self.scheme).sub_(weight[rows])
            signal += float(torch.linalg.vector_norm(weight[rows], dtype=torch.float64)) ** 2
            noise += float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2
        return signal, noise

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scale.nbytes

    def validate(self, name: str) -> None:
        """Check what shapes and dtypes cannot show.

        Raises:
            CheckpointError: a scale that is not finite and non-negative, a code outside the grid, or padding that is set.
        """
        damaged = "the file is damaged; copy or quantize it again"
        bad_scale = self.scale == 255 if self.scale.dtype == torch.uint8 else ~(self.scale.isfinite() & (self.scale >= 0))
        if bad_scale.any():
            raise CheckpointError(f"{name}: {int(bad_scale.sum())} scales are negative, infinite or NaN; {damaged}")
        bits, columns = self.scheme.grid.bits, self.shape[1]
        if columns % 8 and not padding_is_zero(self.packed, bits, columns):
            raise CheckpointError(f"{name}: the padding behind the last code of a row is not zero; {damaged}")
        unused = torch.tensor(sorted(self.scheme.grid.unused_codes), dtype=torch.uint8, device=self.packed.device)
        if len(unused) and torch.isin(self.codes(), unused).any():
            raise CheckpointError(f"{name}: codes outside the grid {self.scheme.grid.magnitudes}; {damaged}")


def _row_blocks(shape: torch.Size) -> list[slice]:
    """Rows in blocks of some hundred thousand weights: temporaries stay small whatever the size of the weight."""
    step = max(1, _BLOCK // shape[1])
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def _rows_of(scale: Tensor, rows: slice) -> Tensor:
    return scale[rows] if len(scale) > 1 else scale


def storage(shape: tuple[int, int], scheme: QuantScheme) -> tuple[tuple[int, int], tuple[int, int], torch.dtype]:
    """Shape of the packed codes, and shape and dtype of the scales, of a weight ``(out, in)``."""
    scale_dtype = torch.float16 if scheme.scale_dtype == "float16" else torch.uint8
    return (shape[0], packed_row_bytes(shape[1], scheme.grid.bits)), scheme.scale_shape(*shape), scale_dtype
