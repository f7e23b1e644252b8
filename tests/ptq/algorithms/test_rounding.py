"""A format as algorithms see it: the same scales, values and codes as the functions of potq.numerics.functional."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from potq.numerics.functional import codebook, spread
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.rounding import SchemeRounding, rescale, round_to_nearest
from potq.ptq.algorithms.rtn import rtn

SCHEMES = {
    **{name: QuantScheme(name, group_size=32) for name in PRESETS},
    "log": QuantScheme("pot4", group_size=32, rounding="log"),
    "row": QuantScheme("pot3", group_size="row"),
    "row_scale": QuantScheme("pot4", group_size=32, scale_dtype="e8m0", row_scale=True),
}


def _weight(rows: int = 5, columns: int = 71) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[1] = 0.0
    return weight


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_rounding_under_rtns_scales_is_rtn(name: str) -> None:
    scheme = SCHEMES[name]
    quantized = rtn(_weight(), scheme)
    rounding = SchemeRounding(scheme, quantized.row_scale)
    rounded = round_to_nearest(_weight(), rounding.decode(quantized.scale), None, rounding)
    assert torch.equal(rounded.values, quantized.dequantize())
    assert torch.equal(rounding.pack(rounded).packed, quantized.packed)
    assert torch.equal(rounding.pack(rounded).scale, quantized.scale)
    assert torch.equal(rounding.unpack(quantized).values, rounded.values)
    assert torch.equal(rounding.unpack(quantized).scale, rounded.scale)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_stored_scales_stay_what_they_are(name: str) -> None:
    rounding = SchemeRounding.of(_weight(), SCHEMES[name], None)
    once = rounding.store(torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) * 0.1)
    assert torch.equal(rounding.store(once), once)
    assert torch.equal(rounding.decode(rounding.encode(once)), once)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_a_fitted_scale_is_one_that_is_stored(name: str) -> None:
    rounding = SchemeRounding.of(_weight(), SCHEMES[name], None)
    scale, shift = rounding.fit(_weight()[:, :32].contiguous(), torch.ones(32))
    assert shift is None
    assert torch.equal(rounding.store(scale), scale)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_rescaling_to_the_same_scales_changes_nothing(name: str) -> None:
    rounding = SchemeRounding.of(_weight(), SCHEMES[name], None)
    start = rounding.unpack(rtn(_weight(), SCHEMES[name]))
    assert torch.equal(rescale(start, start.scale, rounding).values, start.values)


def test_rescaling_keeps_the_codes() -> None:
    rounding = SchemeRounding(SCHEMES["pot4"])
    start = rounding.unpack(rtn(_weight(), rounding.scheme))
    doubled = rescale(start, start.scale * 2, rounding)
    assert torch.equal(doubled.values, start.values * 2)
    odd = rescale(start, rounding.store(start.scale * 1.37), rounding)
    assert torch.equal(rounding.pack(odd).packed, rounding.pack(start).packed)
    assert torch.equal(rounding.pack(odd).dequantize(), odd.values)
    assert torch.equal(odd.latent, start.latent)


def test_shifts_move_the_grid() -> None:
    rounding = SchemeRounding(SCHEMES["int3"])
    scale, shift = torch.full((5, 3), 0.01), torch.full((5, 3), 0.5)
    rounded = round_to_nearest(_weight(), scale, shift, rounding)
    unshifted = round_to_nearest(_weight() - 0.005, scale, None, rounding)
    torch.testing.assert_close(rounded.values, unshifted.values + 0.005)
    moved = rescale(rounded, scale, rounding)
    torch.testing.assert_close(moved.values, rounded.values)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_levels_ascend_and_boundaries_lie_between(name: str) -> None:
    levels, boundaries = codebook(SCHEMES[name], torch.device("cpu"))
    assert (levels.diff() > 0).all()
    assert (levels[:-1] < boundaries).all()
    assert (boundaries < levels[1:]).all()


@pytest.mark.parametrize(("size", "columns"), [(4, 10), (5, 10), ("row", 7), (100, 7)])
def test_spreading_repeats_what_a_group_has(size: Any, columns: int) -> None:
    rounding = SchemeRounding(QuantScheme("pot4", group_size=size))
    group = rounding.group(columns)
    parameter = torch.arange(-(-columns // group)).float().expand(2, -1)
    assert torch.equal(spread(parameter, group, columns)[0], (torch.arange(columns) // group).float())
