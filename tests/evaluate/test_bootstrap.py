"""The paired bootstrap: what it must find on data whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potq.errors import DataError
from potq.evaluate.bootstrap import paired_bootstrap

PREDICTED = 100  # tokens a window


def windows(count: int, mean: float, spread: float, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    return (PREDICTED * (mean + spread * torch.randn(count, generator=generator))).tolist()


def difference(a: list[float], b: list[float]) -> float:
    predicted = PREDICTED * len(a)
    return math.exp(sum(a) / predicted) - math.exp(sum(b) / predicted)


def test_the_interval_holds_the_difference_and_pairs_the_windows() -> None:
    hard = windows(40, 3.0, 0.5, seed=0)  # windows differ much, the two models little
    a = [x + 2 + y / 100 for x, y in zip(hard, windows(40, 0.0, 0.1, seed=1), strict=True)]
    low, high = paired_bootstrap(a, hard, PREDICTED * 40)
    assert 0 < low < difference(a, hard) < high
    unpaired = paired_bootstrap(a, list(reversed(hard)), PREDICTED * 40)
    assert high - low < (unpaired[1] - unpaired[0]) / 5


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    b = [3.0 * PREDICTED] * 400
    a = windows(400, 3.0, 0.05, seed=2)
    low, high = paired_bootstrap(a, b, PREDICTED * 400)
    error = math.exp(3) * 0.05 / math.sqrt(400)  # delta method
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    """Windows drawn from a known distribution: the truth is in some 95% of the intervals."""
    b = [3.0 * PREDICTED] * 50
    held = 0
    for seed in range(200):
        low, high = paired_bootstrap(windows(50, 3.0, 0.05, seed), b, PREDICTED * 50, draws=500)
        held += low <= 0 <= high
    assert 180 <= held <= 198


def test_equal_models_differ_by_nothing() -> None:
    nll = windows(10, 3.0, 0.5, seed=0)
    assert paired_bootstrap(nll, nll, PREDICTED * 10) == (0.0, 0.0)


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=30), st.integers(0, 2**31))
def test_antisymmetric_and_repeatable(nll: list[float], seed: int) -> None:
    other = [x / 2 + 1 for x in nll]
    predicted = PREDICTED * len(nll)
    low, high = paired_bootstrap(nll, other, predicted, seed, 200)
    assert low <= high
    assert (low, high) == paired_bootstrap(nll, other, predicted, seed, 200)
    back = paired_bootstrap(other, nll, predicted, seed, 200)
    assert back == pytest.approx((-high, -low), rel=1e-9, abs=1e-12)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    paired_bootstrap([1.0, 2.0], [1.5, 2.5], 10)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_many_draws_are_taken_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = windows(20, 3.0, 0.1, seed=0), windows(20, 3.0, 0.1, seed=1)
    whole = paired_bootstrap(a, b, PREDICTED * 20)
    monkeypatch.setattr("potq.evaluate.bootstrap._AT_ONCE", 1000)
    assert paired_bootstrap(a, b, PREDICTED * 20) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("a", "b", "predicted", "draws", "message"),
    [
        ([1.0, 2.0], [1.0], 10, 10, "2 windows against 1"),
        ([], [], 10, 10, "needs at least 2 windows, found 0"),
        ([1.0], [1.0], 10, 10, "at least 2"),
        ([1.0, math.nan], [1.0, 2.0], 10, 10, "NaN"),
        ([1.0, math.inf], [1.0, 2.0], 10, 10, "infinite"),
        ([1.0, 2.0], [1.0, 2.0], 0, 10, "0 predicted tokens"),
        ([1.0, 2.0], [1.0, 2.0], 10, 0, "0 draws"),
    ],
)
def test_bad_input(a: list[float], b: list[float], predicted: int, draws: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_bootstrap(a, b, predicted, draws=draws)
