"""Columns one after another: the compiled loops and the torch ones give the same bits, and do what their equations say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potq import native
from potq.numerics.scheme import PRESETS
from potq.ptq.algorithms.columns import Block, compensate, descend
from potq.ptq.algorithms.rounding import SchemeRounding

GRIDS = ["pot2", "int2", "pot3", "apot4", "nf4", "mxfp4", "pot5", "int8"]
compiled_library = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


def _problem(name: str, rows: int, columns: int, seed: int, *, shift: bool = False) -> tuple[Block, Tensor, Tensor]:
    """A block with some zero scales and some negative ones, weights (rows, columns), and a positive definite matrix."""
    generator = torch.Generator().manual_seed(seed)
    groups = 3
    scale = torch.rand(rows, groups, generator=generator) + 0.1
    scale[torch.rand(rows, groups, generator=generator) < 0.1] = 0.0
    scale[torch.rand(rows, groups, generator=generator) < 0.2] *= -1
    shifts = torch.randn(rows, groups, generator=generator) if shift else None
    group = torch.randint(groups, (columns,), generator=generator, dtype=torch.int32)
    weights = torch.randn(rows, columns, generator=generator)
    x = torch.randn(columns + 4, columns, generator=generator)
    return Block(SchemeRounding(PRESETS[name]), scale, shifts, group), weights, x.t() @ x / len(x)


def _factor(hessian: Tensor) -> Tensor:
    return torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)


def _compensated(block: Block, weights: Tensor, hessian: Tensor) -> tuple[Tensor, ...]:
    rounded = weights.clone()
    return (*compensate(block, rounded, _factor(hessian)), rounded)


def _descended(block: Block, weights: Tensor, hessian: Tensor) -> tuple[Tensor, ...]:
    values, gradient = torch.zeros_like(weights), -weights @ hessian
    return descend(block, values, gradient, hessian), values, gradient


def _in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: "not installed")


@compiled_library
@given(st.sampled_from(GRIDS), st.integers(1, 9), st.integers(1, 40), st.integers(0, 99), st.booleans())
def test_compiled_and_torch_give_the_same_bits(name: str, rows: int, columns: int, seed: int, shift: bool) -> None:
    problem = _problem(name, rows, columns, seed, shift=shift)
    for run in (_compensated, _descended):
        compiled = run(*problem)
        with pytest.MonkeyPatch.context() as patch:
            _in_torch(patch)
            in_torch = run(*problem)
        assert all(torch.equal(a, b) for a, b in zip(compiled, in_torch, strict=True))


@compiled_library
@pytest.mark.parametrize("run", [_compensated, _descended])
def test_any_number_of_threads_gives_the_same_bits(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, results = _problem("pot3", 37, 64, 0), []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(run(*problem))  # type: ignore[operator]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=compiled_library), False])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("name", GRIDS)
def test_values_are_on_the_shifted_grid_and_zero_under_a_zero_scale(
    name: str, shift: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, weights, hessian = _problem(name, 5, 24, 1, shift=shift)
    if not compiled:
        _in_torch(monkeypatch)
    columns = block.group.long()
    scale = block.scale[:, columns, None]
    shifts = torch.zeros_like(scale) if block.shift is None else block.shift[:, columns, None]
    allowed = scale * (block.rounding.levels + shifts)
    for values in (_compensated(block, weights, hessian)[0], _descended(block, weights, hessian)[1]):
        assert (values[..., None] == allowed).any(-1).all()
    assert (block.scale == 0).any()


def test_compensating_spreads_every_error_over_the_columns_behind_it() -> None:
    """GPTQ's own equations, on the inverse Hessian of the columns that are left."""
    block, weights, hessian = _problem("pot3", 4, 12, 2)
    values, _, _ = _compensated(block, weights, hessian)
    left = weights.double().clone()
    for j in range(left.shape[1]):
        inverse = torch.linalg.inv(hessian.double()[j:, j:])
        error = (left[:, j] - values[:, j]) / inverse[0, 0]
        nearest = (values[:, j] - left[:, j]).abs()
        other = block.scale[:, block.group[j], None] * block.rounding.levels
        assert (nearest <= (other - left[:, j, None]).abs().amin(1) + 1e-4).all()
        left[:, j:] -= error[:, None] * inverse[0]
    torch.testing.assert_close(left.float(), values, rtol=0, atol=1e-4)


def test_descending_lowers_the_error_and_keeps_the_gradient_true() -> None:
    block, weights, hessian = _problem("pot4", 6, 30, 3)
    changes, values, gradient = _descended(block, weights, hessian)
    assert torch.equal(changes, values)  # it started from zero
    torch.testing.assert_close(gradient, (values - weights) @ hessian, rtol=0, atol=1e-4)
    error = (((values - weights) @ hessian) * (values - weights)).sum(1)
    assert (error <= ((weights @ hessian) * weights).sum(1)).all()
    again = values.clone()
    for _ in range(20):
        descend(block, again, gradient, hessian)
    assert not descend(block, again, gradient, hessian).any()  # it comes to rest
