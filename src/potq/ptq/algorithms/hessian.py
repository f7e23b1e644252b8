"""The second moments of a layer's inputs, and what algorithms make of them, once for all layers that read the same."""

from __future__ import annotations

import torch
from torch import Tensor

from potq.errors import PotqError
from potq.numerics.functional import all_finite

_BLOCK = 128  # columns at a time
_CORNER = 256  # rows of a triangular matrix that are inverted at once
_REVERSED = 1 << 20  # entries at a time


class NotFactorableError(PotqError):
    """The Hessian has no Cholesky factor even with its diagonal doubled: it is not a matrix of second moments."""


class Hessian:
    """Second moments ``(in, in)``, float32, damped; the factor of their inverse is computed when it is asked for, and kept.

    A wide layer's take most of a gigabyte. So the matrix that is given becomes ``matrix``: its diagonal is written to.

    Attributes:
        moments: ``(in,)``, the diagonal as it was given.
        diagonal: ``(in,)``, the same with the mean of the others for an input that is always zero.
        matrix: ``(in, in)``, ``damping`` times the mean of ``diagonal`` added to the diagonal.

    Example:
        >>> import torch
        >>> hessian = Hessian(torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 4.0]]), damping=0.0)
        >>> hessian.matrix.tolist()
        [[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [1.0, 0.0, 4.0]]
        >>> order, factor = hessian.factor(ordered=True)
        >>> order.tolist()
        [2, 1, 0]
    """

    def __init__(self, matrix: Tensor, damping: float = 0.01) -> None:
        self.moments = matrix.diagonal().clone()
        self.diagonal = _without_dead_inputs(self.moments)
        self.matrix, self._damping = matrix, damping
        self.matrix.diagonal().copy_(self.diagonal + damping * self.diagonal.mean())
        self._found: dict[bool, tuple[Tensor, Tensor]] = {}

    def factor(self, *, ordered: bool) -> tuple[Tensor, Tensor]:
        """The order of the columns, int64 ``(in,)``, and of the matrix in that order the upper factor of the inverse.

        Args:
            ordered: columns of largest second moment first; otherwise as they are.

        Raises:
            NotFactorableError: no damping up to 1 makes the matrix positive definite.
        """
        if ordered not in self._found:
            order = torch.arange(len(self.diagonal), device=self.diagonal.device)
            if ordered:
                order = torch.argsort(self.diagonal, descending=True, stable=True)
            self._found[ordered] = order, inverse_factor(self.matrix, self.diagonal, self._damping, order)
        return self._found[ordered]


def _without_dead_inputs(diagonal: Tensor) -> Tensor:
    """``diagonal`` with the mean of the others where an input is always zero: such columns are rounded to nearest."""
    alive = diagonal[diagonal != 0]
    return torch.where(diagonal == 0, alive.mean() if len(alive) else diagonal.new_ones(()), diagonal)


def inverse_factor(matrix: Tensor, diagonal: Tensor, damping: float, order: Tensor) -> Tensor:
    """Upper Cholesky factor ``U`` of the inverse, ``H^-1 = U^T U``; the damping grows tenfold until there is one.

    ``H`` is ``matrix`` in another ``order``, with ``diagonal`` and ``damping`` times its mean as the diagonal. From behind,
    ``H = R R^T`` with an upper ``R`` (the Cholesky factor of ``H`` with its columns reversed, itself reversed), and ``U``
    is the inverse of ``R``. That is half the work of a factor of the inverse, and no inverse of ``H`` loses digits on
    the way. Beside ``matrix`` and the result there is little in memory.

    Raises:
        NotFactorableError: no damping up to 1 suffices.
    """
    backwards = order.flip(0)
    while damping < 10:
        found = _reordered(matrix, backwards)
        found.diagonal().copy_(diagonal[backwards] + min(damping, 1.0) * diagonal.mean())
        failed = torch.empty((), dtype=torch.int32, device=found.device)
        torch.linalg.cholesky_ex(found.mT, upper=True, out=(found.mT, failed))  # in its place; as its rows lie, it is lower
        if not failed:
            _invert_lower(found)
            if all_finite(_reverse(found)):
                return found
        damping *= 10
    raise NotFactorableError("the second moments of its inputs are not positive definite, even damped")


def _reordered(matrix: Tensor, order: Tensor) -> Tensor:
    """``matrix[order][:, order]``."""
    result = matrix.index_select(0, order)
    for rows in result.split(_BLOCK):
        rows.copy_(rows.index_select(1, order))
    return result


def _invert_lower(lower: Tensor) -> None:
    """Invert a lower triangular matrix in its place, by quarters; some rows or columns of one of them at a time."""
    half = len(lower) // 2
    if len(lower) <= _CORNER:
        lower.copy_(torch.linalg.solve_triangular(lower, torch.eye(len(lower), device=lower.device), upper=False))
        return
    first, corner, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert_lower(first)
    _invert_lower(last)
    for start in reversed(range(0, len(last), _CORNER)):  # each needs those above it alone
        stop = start + _CORNER
        corner[start:stop] = last[start:stop, :stop] @ corner[:stop]
    for start in range(0, half, _CORNER):
        stop = start + _CORNER
        corner[:, start:stop] = (corner[:, start:] @ first[start:, start:stop]).neg_()


def _reverse(matrix: Tensor) -> Tensor:
    """A contiguous matrix with rows and columns reversed, in its place."""
    flat = matrix.view(-1)
    for start in range(0, len(flat) // 2, _REVERSED):
        front = flat[start : min(start + _REVERSED, len(flat) // 2)]
        back = flat[len(flat) - start - len(front) : len(flat) - start]
        kept = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(kept)
    return matrix
