"""One quantized weight: packed codes, stored scales, logical shape, scheme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potq.errors import CheckpointError, ConfigError
from potq.numerics import functional
from potq.numerics.packing import pack, padding_is_zero, unpack
from potq.numerics.scheme import QuantScheme, packed_row_bytes
from potq.numerics.trellis import contract, expand

_BLOCK = 1 << 18  # weights; larger temporaries leave holes in the heap between the packed weights


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight ``(out, in)`` in packed form.

    Attributes:
        packed: uint8 ``(out, row bytes)``, the layout of :mod:`potq.numerics.packing`.
        scale: float16 or uint8 (E8M0), ``scheme.scale_shape(out, in)``.
        shape: ``(out, in)``.
        scheme: how to read them.
        row_scale: float16 ``(out, 1)`` if ``scheme.row_scale``, else None.
    """

    packed: Tensor
    scale: Tensor
    shape: tuple[int, int]
    scheme: QuantScheme
    row_scale: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.row_scale is not None) != self.scheme.row_scale:
            raise ConfigError(f"{self.scheme.name} {'needs a' if self.scheme.row_scale else 'has no'} row scale")

    @classmethod
    def from_scale(
        cls, weight: Tensor, scale: Tensor, scheme: QuantScheme, row_scale: Tensor | None = None
    ) -> QuantizedWeight:
        """Round ``weight`` ``(out, in)`` to the grid under stored ``scale`` and ``row_scale`` and pack it.

        Raises:
            ConfigError: ``row_scale`` is given and the scheme has none, or the reverse.
        """
        shape = weight.shape[0], weight.shape[1]
        packed = torch.empty(storage(shape, scheme)["packed"][0], dtype=torch.uint8, device=weight.device)
        for rows in _row_blocks(weight.shape):
            row = None if row_scale is None else row_scale[rows]
            codes = functional.quantize(weight[rows], _rows_of(scale, rows), scheme, row)
            packed[rows] = pack(contract(codes, scheme.grid) if scheme.trellis else codes, scheme.code_bits)
        return cls(packed, scale, shape, scheme, row_scale)

    @classmethod
    def empty(cls, shape: tuple[int, int], scheme: QuantScheme, device: torch.device | str) -> QuantizedWeight:
        """Uninitialised storage of the right shapes, to be filled from a checkpoint."""
        stored = storage(shape, scheme).items()
        tensors = {name: torch.empty(size, dtype=dtype, device=device) for name, (size, dtype) in stored}
        return cls(shape=shape, scheme=scheme, **tensors)

    @classmethod
    def joined(cls, parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
        """The rows of all ``parts``, which are alike and have scales of their own, one after another."""
        names = parts[0].tensors()
        stored = {name: torch.cat([part.tensors()[name] for part in parts]) for name in names}
        return cls(shape=(len(stored["packed"]), parts[0].shape[1]), scheme=parts[0].scheme, **stored)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by the names of :func:`storage`."""
        named = {"packed": self.packed, "scale": self.scale, "row_scale": self.row_scale}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def rows(self, rows: slice | Tensor) -> QuantizedWeight:
        """Some of the rows: a slice (which shares storage), or int64 indices."""
        packed, row_scale = self.packed[rows], None if self.row_scale is None else self.row_scale[rows]
        scale = self.scale[rows] if len(self.scale) > 1 else self.scale
        return QuantizedWeight(packed, scale, (len(packed), self.shape[1]), self.scheme, row_scale)

    def codes(self) -> Tensor:
        """Codes of the grid, uint8 ``(out, in)``."""
        codes = unpack(self.packed, self.scheme.code_bits, self.shape[1])
        return expand(codes, self.scheme.grid) if self.scheme.trellis else codes

    def dequantize(self) -> Tensor:
        """Float32 weight ``(out, in)``, exact."""
        return functional.dequantize(self.codes(), self.scale, self.scheme, self.row_scale)

    def energies(self, weight: Tensor) -> tuple[float, float]:
        """Sum of the squares of ``weight`` ``(out, in)``, and of the differences from it, without a copy as large as it."""
        signal = noise = 0.0
        for rows in _row_blocks(weight.shape):
            block = weight[rows].float()
            error = self.rows(rows).dequantize().sub_(block)
            signal += float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
            noise += float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2
        return signal, noise

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def validate(self, name: str) -> None:
        """Check what shapes and dtypes cannot show.

        Raises:
            CheckpointError: a scale that is not finite, or negative where scales have no sign; scales whose product float32
                cannot hold; a code outside the grid; padding that is set.
        """
        damaged = "the file is damaged; copy or quantize it again"
        if self.scale.dtype == torch.uint8:
            bad_scale = self.scale == 255
        else:
            bad_scale = ~(self.scale.isfinite() & ((self.scale >= 0) | self.scheme.signed_scale))
        if bad_scale.any():
            raise CheckpointError(f"{name}: {int(bad_scale.sum())} scales are negative, infinite or NaN; {damaged}")
        if self.row_scale is not None:
            self._validate_row_scale(self.row_scale, name, damaged)
        bits, columns = self.scheme.code_bits, self.shape[1]
        if columns % 8 and not padding_is_zero(self.packed, bits, columns):
            raise CheckpointError(f"{name}: the padding behind the last code of a row is not zero; {damaged}")
        unused = torch.tensor(sorted(self.scheme.grid.unused_codes), dtype=torch.uint8, device=self.packed.device)
        if len(unused) and torch.isin(self.codes(), unused).any():
            raise CheckpointError(f"{name}: codes outside the grid {self.scheme.grid.magnitudes}; {damaged}")

    def _validate_row_scale(self, row_scale: Tensor, name: str, damaged: str) -> None:
        bad_row = ~(row_scale.isfinite() & (row_scale >= 0))
        if bad_row.any():
            raise CheckpointError(f"{name}: {int(bad_row.sum())} row scales are negative, infinite or NaN; {damaged}")
        largest = max(map(abs, self.scheme.grid.levels)) / self.scheme.grid.reference
        overflow = ~(functional.decode_scale(self.scale, row_scale) * largest).isfinite()
        if overflow.any():
            raise CheckpointError(f"{name}: {int(overflow.sum())} groups have weights beyond float32; {damaged}")


def _row_blocks(shape: torch.Size) -> list[slice]:
    """Rows in blocks of some hundred thousand weights: temporaries stay small whatever the size of the weight."""
    step = max(1, _BLOCK // shape[1])
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def _rows_of(scale: Tensor, rows: slice) -> Tensor:
    return scale[rows] if len(scale) > 1 else scale


def storage(shape: tuple[int, int], scheme: QuantScheme) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    """Shape and dtype of every tensor that a weight ``(out, in)`` is stored as, by the field of :class:`QuantizedWeight`.

    A module's buffers and a checkpoint call them ``weight_packed``, ``weight_scale``, ``weight_row_scale``.
    """
    stored = {
        "packed": ((shape[0], packed_row_bytes(shape[1], scheme.code_bits)), torch.uint8),
        "scale": (scheme.scale_shape(*shape), torch.float16 if scheme.scale_dtype == "float16" else torch.uint8),
    }
    return stored | {"row_scale": ((shape[0], 1), torch.float16)} if scheme.row_scale else stored
