"""Refining scales and codes in turns: no row ever gets worse, and the result is one that can be stored."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from potq import native
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms import descent
from potq.ptq.algorithms.descent import output_error, refine_layer
from potq.ptq.algorithms.gptq import fit_groups, gptq
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.rounding import Rounded, SchemeRounding, rescale, round_to_nearest
from potq.ptq.algorithms.rtn import rtn

SCHEMES = {
    **{name: PRESETS[name] for name in ("pot2", "pot2z", "pot3", "int3", "nf4", "apot4", "mxfp4", "pot5")},
    "row": QuantScheme("pot3", group_size="row"),
    "small": QuantScheme("int2", group_size=16),
    "signed": QuantScheme("pot3s", group_size=32),
    "row_scale": QuantScheme("pot4", group_size=32, scale_dtype="e8m0", row_scale=True),
}


def _problem(rows: int = 7, columns: int = 150, samples: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight with a zero row, and second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    weight[rows // 2] *= rows == 1
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns) / 2
    x = torch.randn(samples, columns, generator=generator) @ mix
    return weight, x.t() @ x / samples


def _damped(hessian: Tensor, damping: float = 0.01) -> Tensor:
    return Hessian(hessian.clone(), damping).matrix


@pytest.mark.parametrize("shape", [(7, 150), (1, 150), (5, 24), (1, 20)])
@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_no_row_gets_worse_from_round_to_round(name: str, shape: tuple[int, int]) -> None:
    weight, hessian = _problem(*shape)
    quantized = rtn(weight, SCHEMES[name])
    rounding = SchemeRounding(SCHEMES[name], quantized.row_scale)
    for start in (rounding.unpack(quantized), gptq(weight, Hessian(hessian.clone()), rounding)):
        errors = [output_error(weight, start.values, _damped(hessian))]
        for rounds in (1, 2, 3):
            found = refine_layer(weight, Hessian(hessian.clone()), start, rounding, rounds=rounds)
            errors.append(output_error(weight, found.values, _damped(hessian)))
            assert (errors[-1] <= errors[-2] * (1 + 1e-5)).all()
        assert errors[-1].sum() < errors[0].sum() or shape == (1, 20)  # so few weights may be at their best


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_stripes_of_a_wide_layer_take_turns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row gets worse by one, every gradient follows, and all in all it is nearly as good as all groups at once."""
    weight, hessian = _problem(64, 330)
    rounding = SchemeRounding.of(weight, SCHEMES[name], hessian.diagonal())
    start = gptq(weight, Hessian(hessian.clone()), rounding)
    whole = refine_layer(weight, Hessian(hessian.clone()), start, rounding, rounds=3)
    monkeypatch.setattr(descent, "_STRIPE", 140)
    seen = [output_error(weight, start.values, _damped(hessian))]
    own = descent._refine_stripe

    def watched(rounded: Rounded, gradient: Tensor, moments: Tensor, stripe: slice, rounding: Any) -> None:
        own(rounded, gradient, moments, stripe, rounding)
        torch.testing.assert_close(gradient, (rounded.values - weight) @ moments, rtol=1e-3, atol=1e-5)
        assert torch.equal(round_to_nearest(rounded.values, rounded.scale, None, rounding).values, rounded.values)
        seen.append(output_error(weight, rounded.values, moments))

    monkeypatch.setattr(descent, "_refine_stripe", watched)
    found = refine_layer(weight, Hessian(hessian.clone()), start, rounding, rounds=3)
    assert len(seen) == 1 + 3 * (1 if SCHEMES[name].group_size == "row" else 3)
    assert all((after <= before * (1 + 1e-5)).all() for before, after in itertools.pairwise(seen))
    assert seen[-1].sum() <= 1.05 * output_error(weight, whole.values, _damped(hessian)).sum()
    assert torch.equal(rounding.store(found.scale), found.scale)
    assert not torch.equal(start.values, found.values)


def test_a_trellis_is_refined_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "_STRIPE", 64)
    assert descent.stripe_columns(330, SchemeRounding(QuantScheme("pot2t"))) == 330
    assert descent.stripe_columns(330, SchemeRounding(QuantScheme("pot2"))) == 64
    assert descent.stripe_columns(330, SchemeRounding(QuantScheme("pot2", group_size=100))) == 100
    assert descent.stripe_columns(30, SchemeRounding(QuantScheme("pot2"))) == 30


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_the_result_can_be_stored(name: str) -> None:
    weight, hessian = _problem()
    quantized = rtn(weight, SCHEMES[name])
    rounding = SchemeRounding(SCHEMES[name], quantized.row_scale)
    found = refine_layer(weight, Hessian(hessian.clone()), rounding.unpack(quantized), rounding, rounds=2)
    assert torch.equal(rounding.store(found.scale), found.scale)
    assert torch.equal(round_to_nearest(found.values, found.scale, None, rounding).values, found.values)
    packed = rounding.pack(found)
    packed.validate("weight")
    assert torch.equal(packed.dequantize(), found.values)
    assert torch.equal(rounding.decode(packed.scale), found.scale)


def _best_scales(weight: Tensor, hessian: Tensor, start: Rounded, size: int) -> Tensor:
    levels = start.values / start.scale.repeat_interleave(size, 1).clamp(min=1e-9)
    slope = (((start.values - weight) @ hessian) * levels).unflatten(1, (-1, size)).sum(2)
    return start.scale + descent._best_step(descent._system(levels, hessian, size), slope)


def test_scales_are_the_least_squares_ones() -> None:
    weight, hessian = _problem(4, 24)
    rounding = SchemeRounding(QuantScheme("pot4", group_size=8))
    start = rounding.unpack(rtn(weight, rounding.scheme))
    found = _best_scales(weight, hessian, start, 8)
    levels = start.values / start.scale.repeat_interleave(8, 1).clamp(min=1e-9)
    factor = torch.linalg.cholesky(hessian.double())
    for row in (0, 1, 3):
        basis = torch.block_diag(*levels[row].view(3, 1, 8)).double()
        expected = torch.linalg.lstsq((basis @ factor).t(), (weight[row].double() @ factor)[:, None]).solution[:, 0]
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-3, atol=0)
    assert torch.equal(found[2], start.scale[2])  # no levels, no equation


@pytest.mark.parametrize("size", [8, 48, 64, 150])
def test_a_system_is_that_of_all_levels(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that do not divide the row, and tiles that do not divide the groups before one."""
    weight, hessian = _problem(3)
    monkeypatch.setattr(descent, "_TILE", 2 * size)
    system = descent._system(weight, hessian, size)
    groups = torch.nn.functional.one_hot(torch.arange(150) // size).float()
    basis = weight[:, :, None] * groups
    whole = basis.mT @ hessian @ basis
    torch.testing.assert_close(system, whole.tril())
    step = torch.randn(3, groups.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(descent._product(system, step), (whole @ step[:, :, None])[:, :, 0])


def test_new_scales_are_kept_where_they_help() -> None:
    """What is said to be gained is what is gained."""
    weight, hessian = _problem(64, 128)
    rounding = SchemeRounding(QuantScheme("int4", group_size=32, scale_dtype="e8m0"))
    start = rounding.unpack(rtn(weight, rounding.scheme))
    octaves = (
        torch.randint(2, start.scale.shape, generator=torch.Generator().manual_seed(0)) * (torch.arange(64) < 40)[:, None]
    )
    start = rescale(start, start.scale * 2.0**octaves, rounding)  # the same codes; rows of scales that are right stay
    found = descent._refit_scales((start.values - weight) @ hessian, hessian, start, rounding)
    before, after = (output_error(weight, v, hessian) for v in (start.values, found.values))
    kept = (found.scale != start.scale).any(1)
    assert 0 < kept.sum() < 64
    assert (after[kept] < before[kept]).all()
    assert torch.equal(found.values[~kept], start.values[~kept])


@pytest.mark.parametrize("kind", ["zero", "dead", "few"])
def test_hessians_of_all_kinds(kind: str) -> None:
    weight, hessian = _problem(samples=20 if kind == "few" else 600)
    if kind != "few":
        dead = slice(0, 150 if kind == "zero" else 70)  # a whole group and some more
        hessian[dead], hessian[:, dead] = 0.0, 0.0
    rounding = SchemeRounding(PRESETS["pot3"])
    start = rounding.unpack(rtn(weight, rounding.scheme))
    found = refine_layer(weight, Hessian(hessian.clone()), start, rounding, rounds=2)
    assert found.values.isfinite().all()
    before, after = (output_error(weight, v, _damped(hessian)) for v in (start.values, found.values))
    assert (after <= before * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["pot3", "signed"])
def test_scales_are_refit(name: str) -> None:
    """Negative ones too: GPTQ's first guess of a scale is rarely the least squares one."""
    weight, hessian = _problem(64, 128)
    rounding = SchemeRounding(SCHEMES[name])
    start = gptq(weight, Hessian(hessian.clone()), rounding)
    found = descent._refit_scales((start.values - weight) @ hessian, hessian, start, rounding)
    assert (found.scale != start.scale).any(1).float().mean() > 0.9
    assert (output_error(weight, found.values, hessian) <= output_error(weight, start.values, hessian)).all()


def test_nothing_given_is_changed() -> None:
    weight, hessian = _problem()
    rounding = SchemeRounding(PRESETS["pot3"])
    start = gptq(weight, Hessian(hessian.clone()), rounding)
    kept: list[Any] = [t.clone() for t in (weight, hessian, start.values, start.scale, start.latent)]
    found = refine_layer(weight, Hessian(hessian.clone()), start, rounding, rounds=2)
    assert all(
        torch.equal(a, b) for a, b in zip(kept, (weight, hessian, start.values, start.scale, start.latent), strict=True)
    )
    assert torch.equal(found.latent, start.latent)


def test_with_and_without_the_compiled_library(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = _problem()
    rounding = SchemeRounding(PRESETS["pot3"])
    start = rounding.unpack(rtn(weight, rounding.scheme))
    compiled = refine_layer(weight, Hessian(hessian.clone()), start, rounding, rounds=2)
    monkeypatch.setattr(native, "missing", lambda: "not installed")
    in_torch = refine_layer(weight, Hessian(hessian.clone()), start, rounding, rounds=2)
    assert torch.equal(compiled.values, in_torch.values)
    assert torch.equal(compiled.scale, in_torch.scale)


def test_many_groups_are_solved_alike_on_two_threads() -> None:
    """MKL's decomposition under torch's threads fails from 129 unknowns on, with an error or with wrong numbers."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(24, 160 * 8, generator=generator), torch.randn(200, 160 * 8, generator=generator)
    hessian = inputs.t() @ inputs / 200
    rounding = SchemeRounding(QuantScheme("apot4", group_size=8))
    rounded = round_to_nearest(weight, *fit_groups(weight, torch.ones(160 * 8), rounding), rounding)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(_best_scales(weight, hessian, rounded, 8))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
