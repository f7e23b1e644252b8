"""GPTQ along paths: Viterbi's search where inputs are uncorrelated, better than it and than GPTQ where they are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potq.numerics.functional import spread
from potq.numerics.scheme import TRELLIS, QuantScheme
from potq.numerics.trellis import best_path, state_before
from potq.ptq.algorithms.descent import output_error, refine_layer
from potq.ptq.algorithms.gptq import gptq
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.paths import Window, _survivors, compensated_paths, survivors
from potq.ptq.algorithms.rounding import SchemeRounding
from potq.ptq.algorithms.rtn import rtn

NAMES = list(TRELLIS)


def _weight(rows: int = 8, columns: int = 150, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def _hessian(columns: int = 150, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns) / 2
    x = torch.randn(600, columns, generator=generator) @ mix * torch.rand(columns, generator=generator).mul(3).exp()
    return x.t() @ x / 600


def _window(rows: int, columns: int, name: str) -> tuple[Window, SchemeRounding]:
    weight, hessian, rounding = _weight(rows, columns), _hessian(columns), SchemeRounding(QuantScheme(name))
    scale = rounding.decode(rtn(weight, QuantScheme(name)).scale)
    return Window(weight, spread(scale, 64, columns), Hessian(hessian.clone()).factor(ordered=False)[1]), rounding


@pytest.mark.parametrize("name", NAMES)
def test_with_uncorrelated_inputs_it_is_the_best_path(name: str) -> None:
    weight, rounding = _weight(columns=100), SchemeRounding(QuantScheme(name))
    found = compensated_paths(weight, Hessian(torch.eye(100), damping=1e-12), rounding)
    index, _ = best_path(weight, spread(found.scale, 64, 100), rounding.levels)
    assert torch.equal(found.values, spread(found.scale, 64, 100) * rounding.levels[index.int()])
    torch.testing.assert_close(found.latent, weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ended", [False, True])
def test_library_and_torch_find_the_same(name: str, ended: bool) -> None:
    window, rounding = _window(11, 70, name)
    start = torch.arange(11, dtype=torch.uint8) % 8
    ends = torch.arange(11, dtype=torch.uint8).flip(0) % 8 if ended else None
    states, others = start.clone(), start.clone()
    index, errors = survivors(window, rounding.levels, states, 50, ends)
    expected = _survivors(window, rounding.levels, others, 50, ends)
    assert torch.equal(index, expected[0])
    torch.testing.assert_close(errors, expected[1])
    assert torch.equal(states, others)


def test_a_path_ends_where_it_has_to() -> None:
    window, rounding = _window(16, 40, "pot2t")
    ends, states = torch.arange(16, dtype=torch.uint8) % 8, torch.zeros(16, dtype=torch.uint8)
    index, _ = survivors(window, rounding.levels, states, 40, ends)
    assert torch.equal(states, ends)
    assert torch.equal(state_before(index, 39) * 2 % 8 & 6, ends & 6)  # all but the last bit is known before it


def test_squares_of_the_errors_add_up_to_the_output_error() -> None:
    window, rounding = _window(8, 64, "pot2t")
    index, errors = survivors(window, rounding.levels, torch.zeros(8, dtype=torch.uint8), 64)
    hessian = torch.cholesky_inverse(window.factor.double(), upper=True)
    found = output_error(window.weight.double(), (window.step * rounding.levels[index.int()]).double(), hessian)
    torch.testing.assert_close(errors.double().square().sum(1), found, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("name", "scalar"), [("pot2t", "pot2"), ("int2t", "int2_midrise"), ("apot3t", "apot3")])
def test_the_output_error_is_less_than_of_a_path_that_knows_no_inputs_and_of_gptq(name: str, scalar: str) -> None:
    for seed in range(4):
        weight, hessian = _weight(32, seed=seed), _hessian(seed=seed)
        found = compensated_paths(weight, Hessian(hessian.clone()), SchemeRounding(QuantScheme(name)))
        others = (
            rtn(weight, QuantScheme(name)).dequantize(),
            gptq(weight, Hessian(hessian.clone()), SchemeRounding(QuantScheme(scalar))).values,
        )
        error = output_error(weight, found.values, hessian).sum()
        assert all(error < 0.85 * output_error(weight, other, hessian).sum() for other in others)


@pytest.mark.parametrize("name", NAMES)
def test_descent_stays_on_paths_and_never_makes_a_row_worse(name: str) -> None:
    weight, hessian, rounding = _weight(), _hessian(), SchemeRounding(QuantScheme(name))
    found = compensated_paths(weight, Hessian(hessian.clone()), rounding)
    before = output_error(weight, found.values, hessian)
    for rounds in (1, 2):
        better = refine_layer(weight, Hessian(hessian.clone()), found, rounding, rounds=rounds)
        after = output_error(weight, better.values, hessian)
        assert bool((after <= before * (1 + 1e-3)).all())
        assert float(after.sum()) < 0.95 * float(before.sum())
        assert torch.equal(rounding.pack(better).dequantize(), better.values)


def test_the_result_is_what_its_packed_form_says() -> None:
    weight, rounding = _weight(), SchemeRounding(QuantScheme("pot2t"))
    weight[2, 64:128] = 0
    found = compensated_paths(weight, Hessian(_hessian()), rounding)
    assert torch.equal(rounding.pack(found).dequantize(), found.values)
