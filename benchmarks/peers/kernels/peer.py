"""What a contestant of ``kernels/cpu.py`` is: something that computes ``y = x W^T`` for many distinct copies of one weight.

What counts is that the copies together exceed the last-level cache, so that every product reads its weight from memory, as
it does in a model. They lie in distinct memory and hold equal values, except where a library would see that and share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

PATTERN_ROWS = 64  # rows that are quantized; large weights repeat them, which no kernel can tell


@dataclass(frozen=True)
class Case:
    """One product: a weight ``rows x columns`` (out x in) and ``m`` rows of activations."""

    rows: int
    columns: int
    m: int

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def operations(self) -> int:
        """Multiplications and additions of one product."""
        return 2 * self.m * self.rows * self.columns

    def input(self, seed: int) -> Tensor:
        """Float32 ``(m, columns)``."""
        return torch.randn(self.m, self.columns, generator=torch.Generator().manual_seed(seed + 1))

    def pattern(self, seed: int) -> Tensor:
        """Float32 ``(at most PATTERN_ROWS, columns)``: the rows a weight repeats."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(min(self.rows, PATTERN_ROWS), self.columns, generator=generator) / math.sqrt(self.columns)

    def repeat(self, pattern: Tensor) -> Tensor:
        """``pattern`` repeated to all of the weight's rows, contiguous."""
        return pattern.repeat(-(-self.rows // len(pattern)), *(1,) * (pattern.ndim - 1))[: self.rows].contiguous()


@dataclass(frozen=True)
class Work:
    """A contestant made ready for one case.

    Attributes:
        run: one pass: the product with every copy, in one native call where the library has one.
        output: the last product, float32 ``(m, rows)``; to be called after ``run``.
        weight: the float32 weight ``(rows, columns)`` that the copies stand for.
        close: frees what Python does not.
        note: what else a reader should know of this row (the kernel's route, say).
        keep: what must live as long as this, because only its address is known to ``run``.
    """

    run: Callable[[], object]
    output: Callable[[], Tensor]
    weight: Callable[[], Tensor]
    close: Callable[[], None] = field(default=lambda: None)
    note: str = ""
    keep: tuple[object, ...] = ()


class Peer(Protocol):
    """One contestant. ``group`` is what it is compared as; ``tolerance`` bounds its relative error in ``--check``."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def tolerance(self) -> float: ...

    def bits(self, case: Case) -> float:
        """Stored bits per weight, scales included."""

    def prepare(self, case: Case, copies: int, seed: int) -> Work:
        """Lay out ``copies`` weights and one input.

        Raises:
            UnavailableError: a package is missing, or the library refuses the shape.
        """


def weight_bytes(peer: Peer, case: Case) -> float:
    """Bytes one product reads of its weight, scales included."""
    return peer.bits(case) * case.rows * case.columns / 8


def copies_for(peer: Peer, case: Case, footprint: int) -> int:
    """How many copies exceed ``footprint`` bytes together; at least 2."""
    return max(2, math.ceil(footprint / weight_bytes(peer, case)))


def distinct(weight: Tensor, copies: int) -> list[Tensor]:
    """``copies`` tensors equal to ``weight``, each with memory of its own."""
    return [weight.clone() for _ in range(copies)]
