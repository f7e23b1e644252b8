"""A packed weight without floats: integer levels, and for each group a mantissa and a shift.

A group's scale is ``mantissa * 2**-shift`` in units that the whole matrix shares. Scales that are powers of two have one
mantissa, a power of two itself. So a product needs no multiplication beside those with levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potq.errors import ModelError
from potq.hardware.fixed_point import FRACTION, Integers, bit_length, saturate, scaled, to_int8
from potq.numerics.tensor import QuantizedWeight

_MANTISSA = 11  # bits, those of a float16
_SUM = 30  # bits of a row's product, so that a sum of 32 bits never overflows
_LEAST = 31  # the largest shift
_EXACT = 1 << 24  # float32 adds integers exactly below
_ACTIVATION = 127


@dataclass(frozen=True, eq=False)
class IntegerMatrix:
    """A weight ``(out, in)``.

    A row's product with fixed-point inputs is ``sum over groups of ((sum >> dropped) * mantissa) >> shift``, times
    ``2**exponent``. No step passes 32 bits.

    Attributes:
        name: its module's, for errors.
        codes: int64 ``(out, in)``, those of the checkpoint.
        levels: the level of every code.
        group: inputs that share a scale.
        mantissas: int64 ``(out, groups)``, negative where a signed scale is.
        shifts: int64 ``(out, groups)``, 0 to 31.
        exponent: of the sums' unit.
        dropped: low bits of a group's sum that 32 bits have no room for; 0 in groups of up to 64.
        is_shift: whether all scales are powers of two, which makes mantissas one power of two.
        bits: of a code.
        scheme: its name, for reports.
    """

    name: str
    codes: Integers
    levels: tuple[int, ...]
    group: int
    mantissas: Integers
    shifts: Integers
    exponent: int
    dropped: int
    is_shift: bool
    bits: int
    scheme: str

    @classmethod
    def from_weight(cls, name: str, weight: QuantizedWeight) -> IntegerMatrix:
        """Of a checkpoint's weight.

        Raises:
            ModelError: groups so long, or scales so far apart, that 32 bits do not hold the sums.
        """
        levels = weight.scheme.grid.levels
        rows, columns = weight.shape
        group = weight.scheme.group(columns)
        bound = _ACTIVATION * max(map(abs, levels)) * group
        if bound.bit_length() > 31:
            raise ModelError(
                f"{name}: a sum over groups of {group} inputs under {weight.scheme.name} does not fit 32 bits; "
                "use a smaller group_size or a grid of fewer bits"
            )
        mantissas, exponents, is_shift = _scales(weight)
        free = 31 - bound.bit_length() - (0 if is_shift else _MANTISSA)
        dropped = max(0, -free)
        if is_shift:
            mantissas, exponents = mantissas << free, exponents - free
        exponents = exponents + dropped
        exponent = _shared_exponent(name, (bound >> dropped) * np.abs(mantissas), exponents)
        shifts = np.where(mantissas == 0, _LEAST, np.minimum(exponent - exponents, _LEAST))
        # a scale of zero becomes the least scale: storage has no room for a mantissa of zero
        mantissas = np.where(mantissas == 0, 1 << (free if is_shift else _MANTISSA - 1), mantissas)
        groups = (rows, weight.scheme.scale_shape(rows, columns)[1])
        mantissas, shifts = np.broadcast_to(mantissas, groups), np.broadcast_to(shifts, groups)
        codes = weight.codes().numpy().astype(np.int64)
        return cls(
            name, codes, levels, group, mantissas, shifts, exponent, dropped, is_shift,
            weight.scheme.grid.bits, weight.scheme.name,
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def bound(self) -> int:
        """No group's sum of products is larger."""
        return _ACTIVATION * max(map(abs, self.levels)) * self.group

    def values(self) -> Integers:
        """The level of every weight ``(out, in)``."""
        return np.array(self.levels, np.int64)[self.codes]

    def product(self, inputs: Integers) -> Integers:
        """Fixed-point ``(..., out)`` of fixed-point ``inputs`` ``(..., in)``, which are rounded to 8 bits group by group."""
        starts = range(0, self.shape[1], self.group)
        blocks = [to_int8(inputs[..., start : start + self.group]) for start in starts]
        largest = np.max([shift for _, shift in blocks], axis=0)
        total = np.zeros((*inputs.shape[:-1], self.shape[0]), np.int64)
        dtype: type[np.floating[Any]] = np.float32 if self.bound < _EXACT else np.float64
        levels: NDArray[Any] = np.array(self.levels, dtype)
        for index, (start, (codes, shift)) in enumerate(zip(starts, blocks, strict=True)):
            part = levels[self.codes[:, start : start + self.group]]
            sums: Integers = (codes.astype(dtype) @ part.T).astype(np.int64)
            right = np.minimum(self.shifts[:, index] + (largest - shift)[..., None], _LEAST)
            total += ((sums >> self.dropped) * self.mantissas[:, index]) >> right
        return scaled(total, self.exponent + largest[..., None])

    def rows(self, indices: Integers) -> Integers:
        """Fixed-point rows ``(..., in)``, as an embedding gives them."""
        values = np.array(self.levels, np.int64)[self.codes[indices]]
        groups = np.arange(self.shape[1]) // self.group
        mantissas, shifts = self.mantissas[indices][..., groups], self.shifts[indices][..., groups]
        return scaled(values * mantissas, self.exponent + FRACTION - self.dropped - shifts)

    def part(self, start: int, stop: int, name: str) -> IntegerMatrix:
        """Some of the rows, as a matrix of its own."""
        fields = {key: getattr(self, key) for key in self.__dataclass_fields__}
        cut = {key: fields[key][start:stop] for key in ("codes", "mantissas", "shifts")}
        return IntegerMatrix(**{**fields, **cut, "name": name})


@dataclass(frozen=True, eq=False)
class IntegerLinear:
    """A matrix and its bias, fixed-point ``(out,)``, if it has one."""

    matrix: IntegerMatrix
    bias: Integers | None = None

    def __call__(self, inputs: Integers) -> Integers:
        product = self.matrix.product(inputs)
        return product if self.bias is None else saturate(product + self.bias)


def _scales(weight: QuantizedWeight) -> tuple[Integers, Integers, bool]:
    """What a level is multiplied by, exactly, by group: ``mantissa * 2**exponent``; whether all mantissas are 1 or 0."""
    reference = weight.scheme.grid.reference.bit_length() - 1
    if weight.scheme.scale_dtype == "e8m0":
        exponents = weight.scale.numpy().astype(np.int64) - 127
        mantissas = np.ones_like(exponents)
        if weight.row_scale is not None:
            mantissas, rows = _float16_parts(weight.row_scale.numpy())
            mantissas, exponents = np.broadcast_to(mantissas, exponents.shape), exponents + rows
    else:
        mantissas, exponents = _float16_parts(weight.scale.numpy())
    is_shift = not (mantissas < 0).any() and not (mantissas & (mantissas - 1)).any()
    if is_shift:
        exponents = exponents + np.maximum(bit_length(mantissas) - 1, 0)
        mantissas = np.sign(mantissas)
    return mantissas, exponents - reference, is_shift


def _float16_parts(scale: np.ndarray[tuple[int, ...], np.dtype[np.float16]]) -> tuple[Integers, Integers]:
    fraction, exponent = np.frexp(scale.astype(np.float64))
    return (fraction * 2**_MANTISSA).astype(np.int64), exponent.astype(np.int64) - _MANTISSA


def _shared_exponent(name: str, bounds: Integers, exponents: Integers) -> int:
    """The unit in which no row's sum passes 30 bits and no group needs a left shift."""
    if not bounds.any():
        return 0
    used = exponents[bounds != 0]
    highest = int(used.max())
    if highest > 96 or highest < -96:
        raise ModelError(f"{name}: scales of about 2^{highest} are beyond what 32-bit integers are for")
    relative = np.exp2(np.clip(exponents - highest, -64, 0)) * bounds
    return max(highest, highest + int(np.ceil(np.log2(relative.sum(-1).max()))) - _SUM)
