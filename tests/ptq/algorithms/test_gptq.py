"""GPTQ: rounding to nearest where inputs are uncorrelated, better where they are correlated, whatever the Hessian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.descent import output_error
from potq.ptq.algorithms.gptq import fit_groups, gptq
from potq.ptq.algorithms.hessian import Hessian, NotFactorableError
from potq.ptq.algorithms.rounding import SchemeRounding, round_to_nearest
from potq.ptq.algorithms.rtn import rtn

EXACT = sorted(name for name, scheme in PRESETS.items() if scheme.grid.bits <= 4)


def _weight(rows: int = 8, columns: int = 150, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def _hessian(columns: int = 150, samples: int = 600, seed: int = 0) -> Tensor:
    """Second moments of correlated inputs, some of them large."""
    generator = torch.Generator().manual_seed(1000 + seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns) / 2
    x = torch.randn(samples, columns, generator=generator) @ mix * torch.rand(columns, generator=generator).mul(3).exp()
    return x.t() @ x / samples


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("group_size", [64, 16, "row"])
@pytest.mark.parametrize("name", EXACT)
def test_with_uncorrelated_inputs_it_is_rounding_to_nearest(name: str, group_size: Any, ordered: bool) -> None:
    scheme = QuantScheme(name, group_size=group_size)
    rounding = SchemeRounding(scheme)
    found = gptq(_weight(), Hessian(torch.eye(150)), rounding, ordered=ordered)
    expected = rtn(_weight(), scheme)
    assert torch.equal(found.values, expected.dequantize())
    assert torch.equal(found.scale, rounding.decode(expected.scale))
    assert torch.equal(found.latent, _weight())
    assert torch.equal(rounding.pack(found).packed, expected.packed)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("scheme", [QuantScheme("pot3"), QuantScheme("int3", group_size=32), QuantScheme("mxfp4")])
def test_the_output_error_is_less_than_that_of_rounding_to_nearest(scheme: QuantScheme, ordered: bool) -> None:
    rounding, better = SchemeRounding(scheme), 0
    for seed in range(8):
        weight, hessian = _weight(seed=seed), _hessian(seed=seed)
        found = gptq(weight, Hessian(hessian.clone()), rounding, ordered=ordered)
        nearest = rtn(weight, scheme).dequantize()
        better += bool(output_error(weight, found.values, hessian).sum() < output_error(weight, nearest, hessian).sum())
    assert better == 8


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("name", ["pot4", "pot3s", "mxpot", "nf4", "int8", "row_scale"])
def test_the_result_is_what_its_packed_form_says(name: str, ordered: bool) -> None:
    scheme = QuantScheme("pot4", scale_dtype="e8m0", row_scale=True) if name == "row_scale" else PRESETS[name]
    weight, hessian = _weight(), _hessian()
    rounding = SchemeRounding.of(weight, scheme, hessian.diagonal())
    found = gptq(weight, Hessian(hessian.clone()), rounding, ordered=ordered)
    packed = rounding.pack(found)
    packed.validate("weight")
    assert torch.equal(packed.dequantize(), found.values)
    assert torch.equal(rounding.decode(packed.scale), found.scale)
    assert torch.equal(round_to_nearest(found.latent, found.scale, None, rounding).values, found.values)


@pytest.mark.parametrize("group_size", [64, 48, "row"])
def test_blocks_are_a_matter_of_speed(group_size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rounding, found = SchemeRounding(QuantScheme("pot3", group_size=group_size)), []
    for block in (16, 1000):
        monkeypatch.setattr("potq.ptq.algorithms.gptq._BLOCK", block)
        found.append(gptq(_weight(), Hessian(_hessian()), rounding, ordered=False).values)
    assert (found[0] == found[1]).float().mean() > 0.99  # sums in another order may turn a tie


def test_columns_of_large_moments_are_taken_first() -> None:
    """The first column is rounded as it stands."""
    hessian = _hessian()
    first = int(hessian.diagonal().argmax())
    found = gptq(_weight(), Hessian(hessian), SchemeRounding(PRESETS["pot3"]), ordered=True)
    assert torch.equal(found.latent[:, first], _weight()[:, first])
    assert not torch.equal(found.latent, _weight())


# ---- Hessians of all kinds


@pytest.mark.parametrize("ordered", [True, False])
def test_fewer_samples_than_columns(ordered: bool) -> None:
    weight, hessian = _weight(), _hessian(samples=20)
    found = gptq(weight, Hessian(hessian.clone()), SchemeRounding(PRESETS["pot3"]), ordered=ordered)
    nearest = rtn(weight, PRESETS["pot3"]).dequantize()
    assert output_error(weight, found.values, hessian).sum() < output_error(weight, nearest, hessian).sum()


@pytest.mark.parametrize("ordered", [True, False])
def test_inputs_that_are_always_zero_are_rounded_to_nearest(ordered: bool) -> None:
    hessian, dead = _hessian(), torch.tensor([0, 7, 64, 149])
    hessian[dead] = 0.0
    hessian[:, dead] = 0.0
    rounding = SchemeRounding(PRESETS["pot3"])
    found = gptq(_weight(), Hessian(hessian), rounding, ordered=ordered)
    nearest = round_to_nearest(_weight(), found.scale, None, rounding)
    assert torch.equal(found.values[:, dead], nearest.values[:, dead])
    assert torch.equal(found.latent[:, dead], _weight()[:, dead])


@pytest.mark.parametrize("ordered", [True, False])
def test_a_layer_without_any_input_is_rounded_to_nearest(ordered: bool) -> None:
    found = gptq(_weight(), Hessian(torch.zeros(150, 150)), SchemeRounding(PRESETS["pot4"]), ordered=ordered)
    assert torch.equal(found.values, rtn(_weight(), PRESETS["pot4"]).dequantize())


def test_neither_weight_nor_hessian_is_changed() -> None:
    weight, hessian = _weight(), Hessian(_hessian())
    gptq(weight, hessian, SchemeRounding(PRESETS["pot4"]))
    assert torch.equal(weight, _weight())
    assert torch.equal(hessian.matrix, Hessian(_hessian()).matrix)


def test_layers_that_read_the_same_share_a_factor() -> None:
    shared, found = Hessian(_hessian()), []
    for hessian in (shared, shared, Hessian(_hessian())):
        found.append(gptq(_weight(), hessian, SchemeRounding(PRESETS["pot4"])).values)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_what_cannot_be_factored() -> None:
    with pytest.raises(NotFactorableError):
        gptq(_weight(2, 6), Hessian(-torch.eye(6)), SchemeRounding(PRESETS["pot4"]))


@pytest.mark.parametrize("group_size", [32, 64, "row"])
def test_groups_are_fitted_as_the_weighted_search_does(group_size: Any) -> None:
    from potq.numerics.scale_search import choose_scale

    scheme, importance = QuantScheme("pot3", group_size=group_size), _hessian().diagonal()
    rounding = SchemeRounding(scheme)
    scale, shift = fit_groups(_weight(), importance, rounding)
    assert shift is None
    assert torch.equal(scale, rounding.decode(choose_scale(_weight(), scheme, "weighted", importance=importance)))
