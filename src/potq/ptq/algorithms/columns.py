"""Rounding columns one after another: the compiled loops of ``csrc/fit/columns.cpp``, or the same in torch.

The torch form rounds a column of all rows at a time, in the same order of operations, so that both give the same bits; it is
some hundred times slower, and there for installs without the compiled library and as the reference.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from potq import native
from potq.ptq.algorithms.rounding import Rounding


@dataclass(frozen=True)
class Block:
    """Some columns of a weight, the scales and shifts (float32 ``(rows, groups)``), and the group that each column is in."""

    rounding: Rounding
    scale: Tensor
    shift: Tensor | None
    group: Tensor
    """int32 ``(columns,)``."""

    def described(self) -> native.Columns:
        """As the library takes it."""
        rounding = self.rounding
        return native.Columns.of(rounding.levels, rounding.boundaries, self.scale, self.shift, self.group)


def compensate(block: Block, weights: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """GPTQ within a block: values and errors ``(rows, columns)``; ``weights`` become what was rounded.

    Args:
        weights: float32 ``(rows, columns)``, contiguous.
        factor: the block's part of the upper Cholesky factor of the inverse Hessian, float32 ``(columns, columns)``.
    """
    values, errors = torch.empty_like(weights), torch.empty_like(weights)
    if native.serves(weights.device):
        arguments = (weights, factor.contiguous(), values, errors)
        native.library().potq_compensate(
            ctypes.byref(block.described()), *(t.data_ptr() for t in arguments), torch.get_num_threads()
        )
        return values, errors
    for j in range(weights.shape[1]):
        values[:, j] = _round(block, weights[:, j], j)
        errors[:, j] = (weights[:, j] - values[:, j]) / factor[j, j]
        weights[:, j + 1 :] -= errors[:, j, None] * factor[j, j + 1 :]
    return values, errors


def descend(block: Block, values: Tensor, gradient: Tensor, hessian: Tensor) -> Tensor:
    """A sweep of coordinate descent; ``values`` and ``gradient`` follow, the changes ``(rows, columns)`` are returned.

    Few codes change, so a gradient follows by those rows of the Hessian whose code did.

    Args:
        block: all columns, or some that are by themselves.
        values, gradient: float32 ``(rows, columns)``, contiguous.
        hessian: float32 ``(columns, columns)``.
    """
    changes = torch.empty_like(values)
    if native.serves(values.device):
        arguments = (gradient, hessian.contiguous(), values, changes)
        native.library().potq_descend(
            ctypes.byref(block.described()), *(t.data_ptr() for t in arguments), torch.get_num_threads()
        )
        return changes
    for j in range(values.shape[1]):
        new = _round(block, values[:, j] - gradient[:, j] / hessian[j, j], j)
        changes[:, j] = new - values[:, j]
        values[:, j] = new
        gradient += changes[:, j, None] * hessian[j]
    return changes


def _round(block: Block, column: Tensor, j: int) -> Tensor:
    at = int(block.group[j])
    scale = block.scale[:, at]
    shift = torch.zeros_like(scale) if block.shift is None else block.shift[:, at]
    x = column / scale - shift
    found = torch.bucketize(x.nan_to_num(), block.rounding.boundaries, right=True)
    return torch.where(scale != 0, scale * (block.rounding.levels[found] + shift), 0.0)
