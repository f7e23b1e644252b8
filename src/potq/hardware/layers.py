"""Norms, attention and MLPs on fixed-point numbers. Every function takes all positions of a text at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from potq.errors import ModelError
from potq.hardware.fixed_point import (
    FRACTION,
    Integers,
    bit_length,
    fixed,
    mantissa_of,
    quotient,
    root,
    saturate,
    scaled,
    to_int8,
    to_int15,
)
from potq.hardware.matrix import IntegerLinear
from potq.hardware.tables import POWER_BITS, activate, multiply, power_of_two, rotate

_GAIN = 15  # bits of a gain
_LONGEST = 512  # tokens whose weights of 15 bits add up in 32, with values of 8 bits


@dataclass(frozen=True, eq=False)
class IntegerNorm:
    """An RMS norm, or a layer norm where ``centered``.

    Attributes:
        gains: within 15 bits, int64 ``(n,)``, the root of ``n / 2**square_shift`` in them.
        fraction: their bits behind the point.
        bias: fixed-point, or None.
        centered: whether the mean is taken off first.
        square_shift: what every square is shifted by, so that ``n`` of them fit 32 bits.
        epsilon: ``n`` times the norm's, with 32 bits behind the point.
    """

    gains: Integers
    fraction: int
    bias: Integers | None
    centered: bool
    square_shift: int
    epsilon: int

    @classmethod
    def from_floats(
        cls, name: str, weight: np.ndarray, bias: np.ndarray | None, epsilon: float, *, centered: bool
    ) -> IntegerNorm:
        """Of a module's weight and bias ``(n,)``.

        Raises:
            ModelError: gains or an epsilon beyond what the integers hold.
        """
        count = len(weight)
        square_shift = max((count - 1).bit_length() - 1, 0)
        gains = weight.astype(np.float64) * math.sqrt(count / 2**square_shift)
        fraction = _GAIN - math.frexp(float(np.abs(gains).max()) * (1 + 2.0**-_GAIN))[1]
        if not 0 < fraction <= 31 or (added := round(epsilon * count * 2 ** (2 * FRACTION))) >= 2**31:
            raise ModelError(
                f"{name}: a gain of {np.abs(weight).max():g} or an epsilon of {epsilon:g} is beyond the integers"
            )
        rounded = np.rint(gains * 2.0**fraction).astype(np.int64)
        return cls(rounded, fraction, None if bias is None else fixed(bias), centered, square_shift, added)

    def __call__(self, values: Integers) -> Integers:
        if self.centered:
            total: Integers = values.sum(-1, keepdims=True)
            values = saturate(values - quotient(total, np.full_like(total, values.shape[-1])))
        shift = np.maximum(bit_length(np.abs(values).max(-1, keepdims=True)) - 15, 0)
        squares = (((values >> shift) ** 2) >> self.square_shift).sum(-1, keepdims=True)
        squares = np.maximum(squares + (self.epsilon >> (2 * shift + self.square_shift)), 1)
        even = (32 - bit_length(squares)) & ~1
        inverse = (1 << 31) // root(squares << even)
        right = self.fraction + 15 + shift - (even >> 1)
        result = saturate(values * (self.gains * inverse) >> right)
        return result if self.bias is None else saturate(result + self.bias)


@dataclass(frozen=True, eq=False)
class IntegerAttention:
    """Causal attention of grouped heads.

    Attributes:
        query, key, value, output: the projections.
        heads, kv_heads, head_dim: their numbers.
        factor: ``log2(e)`` times the scores' scale, as ``mantissa * 2**exponent`` with a mantissa of 15 bits.
        weight_shift: what weights are shifted by, so that those of the longest text add up in 32 bits.
    """

    query: IntegerLinear
    key: IntegerLinear
    value: IntegerLinear
    output: IntegerLinear
    heads: int
    kv_heads: int
    head_dim: int
    factor: tuple[int, int]
    weight_shift: int

    def __call__(self, inputs: Integers, rotation: tuple[Integers, Integers] | None) -> Integers:
        query, query_shift = to_int15(self._heads(self.query(inputs), self.heads))
        key, key_shift = to_int15(self._heads(self.key(inputs), self.kv_heads))
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        query = (query * self.factor[0] + (1 << 14)) >> 15
        query_shift = query_shift + self.factor[1] + 15 - 2 * FRACTION + POWER_BITS
        key, more = to_int8(key)
        value, value_shift = to_int8(self._heads(self.value(inputs), self.kv_heads))
        mixed = [
            self._head(query[head], query_shift[head], (key[kv], key_shift[kv] + more[kv]), (value[kv], value_shift[kv]))
            for head in range(self.heads)
            for kv in [head * self.kv_heads // self.heads]
        ]
        return self.output(np.concatenate(mixed, axis=-1))

    def _heads(self, values: Integers, heads: int) -> Integers:
        """``(positions, heads * head_dim)`` as ``(heads, positions, head_dim)``."""
        return values.reshape(-1, heads, self.head_dim).swapaxes(0, 1)

    def _head(
        self,
        query: Integers,
        query_shift: Integers,
        keys: tuple[Integers, Integers],
        values: tuple[Integers, Integers],
    ) -> Integers:
        """Fixed-point ``(positions, head_dim)`` of one head."""
        logarithms = scaled(query @ keys[0].T, query_shift[:, None] + keys[1])
        seen = np.tri(len(query), dtype=bool)
        largest = np.where(seen, logarithms, np.iinfo(np.int64).min).max(-1, keepdims=True)
        weights = np.where(seen, power_of_two(np.maximum(largest - logarithms, 0)) >> self.weight_shift, 0)
        total = weights.sum(-1, keepdims=True)
        coarsest = np.maximum.accumulate(values[1])[:, None]  # of the values seen so far
        mixed = (weights >> np.clip(coarsest - values[1], 0, 31)) @ values[0]
        shift = np.maximum(bit_length(total) - 16, 0)
        return scaled(quotient((mixed >> shift) << 8, total >> shift), coarsest - 8)


def attention_factor(scaling: float) -> tuple[int, int]:
    """See :class:`IntegerAttention`."""
    return mantissa_of(math.log2(math.e) * scaling, 15)


def weight_shift(context: int) -> int:
    """See :class:`IntegerAttention`."""
    return max((context - 1).bit_length() - (_LONGEST - 1).bit_length(), 0)


@dataclass(frozen=True, eq=False)
class IntegerMlp:
    """``down(f(gate) * up)``, or ``down(f(up))`` without a gate; ``table`` is the function's."""

    gate: IntegerLinear | None
    up: IntegerLinear
    down: IntegerLinear
    table: Integers

    def __call__(self, inputs: Integers) -> Integers:
        if self.gate is None:
            return self.down(activate(self.up(inputs), self.table))
        return self.down(multiply(activate(self.gate(inputs), self.table), self.up(inputs)))


@dataclass(frozen=True, eq=False)
class IntegerBlock:
    """Two residual branches."""

    before_attention: IntegerNorm
    attention: IntegerAttention
    before_mlp: IntegerNorm
    mlp: IntegerMlp

    def __call__(self, hidden: Integers, rotation: tuple[Integers, Integers] | None) -> Integers:
        hidden = saturate(hidden + self.attention(self.before_attention(hidden), rotation))
        return saturate(hidden + self.mlp(self.before_mlp(hidden)))
