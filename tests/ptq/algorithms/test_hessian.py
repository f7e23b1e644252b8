"""The factor of the inverse second moments is exact to float32, in any order, and damped until there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potq.ptq.algorithms.hessian import Hessian, NotFactorableError


def _moments(columns: int, samples: int = 600) -> Tensor:
    """Of correlated inputs, some of them large."""
    generator = torch.Generator().manual_seed(columns)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns) / 2
    x = torch.randn(samples, columns, generator=generator) @ mix * torch.rand(columns, generator=generator).mul(3).exp()
    return x.t() @ x / samples


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("columns", [1, 2, 12, 150, 256, 257, 700])
def test_the_factor_is_that_of_the_damped_inverse(columns: int, ordered: bool) -> None:
    """Beyond 256 columns it is inverted by quarters, some columns at a time."""
    moments = _moments(columns)
    order, factor = Hessian(moments.clone(), 0.05).factor(ordered=ordered)
    damped = (moments.double() + torch.eye(columns) * 0.05 * moments.diagonal().mean())[order][:, order]
    inverse = torch.linalg.inv(damped)
    assert float((factor.double().t() @ factor.double() - inverse).norm() / inverse.norm()) < 1e-5
    assert torch.equal(factor, factor.triu())
    assert (factor.diagonal() > 0).all()
    assert factor.is_contiguous()


def test_columns_of_large_moments_come_first() -> None:
    moments = _moments(150)
    order = Hessian(moments.clone()).factor(ordered=True)[0]
    assert (moments.diagonal()[order].diff() <= 0).all()
    assert torch.equal(Hessian(moments.clone()).factor(ordered=False)[0], torch.arange(150))


def test_a_factor_is_computed_once_and_changes_nothing() -> None:
    hessian = Hessian(_moments(150))
    before = hessian.matrix.clone()
    first = hessian.factor(ordered=True)[1]
    assert hessian.factor(ordered=True)[1] is first
    assert torch.equal(hessian.matrix, before)


def test_the_matrix_is_taken_over_and_damped() -> None:
    moments = _moments(12)
    diagonal = moments.diagonal().clone()
    hessian = Hessian(moments, 0.5)
    assert hessian.matrix is moments
    assert torch.equal(hessian.moments, diagonal)
    torch.testing.assert_close(moments.diagonal(), diagonal + 0.5 * diagonal.mean())


def test_dead_inputs_get_the_mean_moment_of_the_others() -> None:
    moments = torch.tensor([[2.0, 0, 1], [0, 0, 0], [1, 0, 4]])
    hessian = Hessian(moments, 0.0)
    assert hessian.matrix.tolist() == [[2, 0, 1], [0, 3, 0], [1, 0, 4]]
    assert hessian.moments.tolist() == [2, 0, 4]
    assert Hessian(torch.zeros(2, 2), 0.0).matrix.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("least", [-0.05, -0.5])
def test_damping_grows_until_it_suffices(least: float) -> None:
    moments = torch.diag(torch.tensor([least, 1.0, 1.0, 1.0]))
    factor = Hessian(moments.clone(), 0.01).factor(ordered=False)[1]
    damping = 0.1 if least > -0.07 else 1.0
    expected = 1 / (moments.diagonal() + damping * moments.diagonal().mean())
    torch.testing.assert_close((factor.t() @ factor).diagonal(), expected)


@pytest.mark.parametrize("moments", [-torch.eye(6), torch.eye(6) + 10 * (1 - torch.eye(6)), torch.full((6, 6), torch.nan)])
def test_what_cannot_be_factored(moments: Tensor) -> None:
    with pytest.raises(NotFactorableError, match="not positive definite, even damped"):
        Hessian(moments.clone()).factor(ordered=False)
