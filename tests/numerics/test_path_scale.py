"""Scales that are searched with the path: near the best of a dense search, and the gain that a trellis is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potq.nn.report import decibels
from potq.numerics.functional import codebook
from potq.numerics.path_scale import path_scale
from potq.numerics.scheme import TRELLIS, QuantScheme
from potq.numerics.trellis import best_cost
from potq.ptq.algorithms.rtn import rtn

NAMES = list(TRELLIS)


def _groups(count: int, size: int = 64) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0))


def _levels(name: str) -> Tensor:
    return codebook(QuantScheme(name), torch.device("cpu"))[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_no_scale_of_a_dense_search_is_much_better(name: str, weighted: bool) -> None:
    block, levels = _groups(12), _levels(name)
    importance = torch.rand(12, 64, generator=torch.Generator().manual_seed(1)) if weighted else None
    root = torch.ones_like(block) if importance is None else importance.sqrt()
    found = best_cost(block * root, path_scale(block, levels, importance)[:, None] * root, levels)
    dense = torch.stack([best_cost(block * root, scale * root, levels) for scale in torch.linspace(0.2, 3, 400)]).amin(0)
    assert float(found.sum() / dense.sum()) < 1.01


@pytest.mark.parametrize(("name", "least"), [("pot2t", 10.5), ("int2t", 10.2), ("apot3t", 16.6)])
def test_a_gaussian_in_decibels(name: str, least: float) -> None:
    """9.4 dB is what 2 bits without a trellis reach, 15.6 what 3 do."""
    weight = _groups(200)
    assert decibels(*rtn(weight, QuantScheme(name)).energies(weight)) > least


def test_what_has_no_scale() -> None:
    block, levels = _groups(4), _levels("pot2t")
    block[1] = 0
    importance = torch.ones(4, 64)
    importance[2] = 0  # as if there was none
    found = path_scale(block, levels, importance)
    assert found[1] == 0
    assert torch.equal(found, path_scale(block, levels, None))
    assert torch.equal(found, found.half().float())


def test_a_power_of_two_changes_nothing() -> None:
    block, levels = _groups(8), _levels("apot3t")
    assert torch.equal(path_scale(block / 64, levels, None), path_scale(block, levels, None) / 64)
