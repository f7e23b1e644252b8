"""The other way into GPTQ that was tried: the best path of a block of columns, whose error goes on to the next block.

QTIP (2406.11235, sec. 3.2) rounds so. Within a block nothing makes up for errors. What potq does instead is in
``potq.ptq.algorithms.paths``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from potq.numerics.functional import spread
from potq.ptq import layer
from potq.ptq.algorithms.gptq import fit_groups
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.paths import Window, survivors
from potq.ptq.algorithms.rounding import Rounded, Rounding


def by_blocks(size: int, weight: Tensor, hessian: Hessian, rounding: Rounding) -> Rounded:
    """As ``potq.ptq.algorithms.paths.compensated_paths``, with Viterbi's search in blocks of ``size`` columns."""
    columns = weight.shape[1]
    _, factor = hessian.factor(ordered=False)
    scale, _ = fit_groups(weight, hessian.diagonal, rounding)
    step = spread(scale, rounding.group(columns), columns)
    latent, values = weight.clone(), torch.empty_like(weight)
    states = torch.zeros(len(weight), dtype=torch.uint8)
    for start in range(0, columns, size):
        part, rest = slice(start, start + size), slice(start + size, columns)
        inside = factor[part, part]
        alone = Window(latent[:, part], step[:, part], inside.diagonal().diag())  # no error moves another weight
        index, _ = survivors(alone, rounding.levels, states, len(inside))
        values[:, part] = step[:, part] * rounding.levels[index.int()]
        errors = torch.linalg.solve_triangular(inside, latent[:, part] - values[:, part], upper=True, left=False)
        latent[:, rest] -= errors @ factor[part, rest]
    return Rounded(values, scale, None, latent)


@contextmanager
def fed_back_by_blocks(size: int) -> Iterator[None]:
    """While it is entered, ``gptq`` with a trellis works by blocks."""

    with mock.patch.object(layer, "compensated_paths", partial(by_blocks, size)):
        yield
