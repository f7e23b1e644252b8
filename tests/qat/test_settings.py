"""When scales are searched anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from potq.qat import QATSettings, trainer
from potq.qat.recipe import TrainRecipe
from qat_helpers import train


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [32, 64]),  # step 96 is beyond three quarters
        ({"search_until": 1.0}, [32, 64, 96]),
        ({"search_until": 0.5, "search_every": 10}, [10, 20, 30, 40, 50]),
        ({"search_until": 0.0, "search_every": 1}, []),
    ],
)
def test_scales_are_searched_every_so_many_steps_and_then_stay(settings: dict[str, Any], expected: list[int]) -> None:
    found = QATSettings(scales="searched", **settings)
    assert [step for step in range(100) if found.searches_before(step, 100)] == expected


def test_training_searches_when_the_settings_say_so(
    make: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Any] = []
    monkeypatch.setattr(trainer, "refresh_scales", searched.append)
    qat = {"scales": "searched", "search_every": 1, "search_until": 0.5}
    train(make(qat=qat, optimization={"steps": 6}))
    assert len(searched) == 3  # before the steps 1, 2 and 3
