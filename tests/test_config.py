"""Efforts: presets by name, what they need, and how they are told of."""

from __future__ import annotations

from typing import Any

import pytest

import potq
from potq.config import EFFORTS, Effort
from potq.errors import ConfigError


@pytest.mark.parametrize("name", EFFORTS)
def test_presets_know_their_names_and_whether_they_need_text(name: str) -> None:
    effort = EFFORTS[name]
    assert effort.name == name
    assert effort.calibrated == (name != "fast")
    assert potq.PoTConfig("pot4", effort=name).effort == effort
    assert potq.PoTConfig.from_dict(potq.PoTConfig("pot4", effort=name).to_dict()).effort == effort


@pytest.mark.parametrize(
    ("effort", "steps"),
    [
        (Effort(), "rtn"),
        (EFFORTS["gptq"], "gptq"),
        (EFFORTS["balanced"], "gptq+descent"),
        (EFFORTS["best"], "gptq+descent+model"),
        (EFFORTS["potptq"], "block-scales"),
        (Effort(rounds=1, scope="block"), "descent+block"),
    ],
)
def test_steps_are_named_in_their_order(effort: Effort, steps: str) -> None:
    assert effort.steps == steps


def test_anything_else_is_custom() -> None:
    assert Effort(rounds=7).name == "custom"
    assert Effort(ordered=False).calibrated is False


@pytest.mark.parametrize(
    "fields",
    [
        {"damping": 0},
        {"damping": 1.1},
        {"rounds": -1},
        {"epochs": 0},
        {"code_rate": -1.0},
        {"scope": "layer"},
        {"colour": 1},
    ],
)
def test_a_wrong_setting_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Effort(**fields)


def test_a_preset_carries_overrides() -> None:
    effort = potq.PoTConfig("pot4", effort="balanced:weigh_tokens=true").effort
    assert effort == EFFORTS["balanced"].model_copy(update={"weigh_tokens": True})
    assert effort is not None
    assert effort.name == "balanced:weigh_tokens=true"
    assert potq.PoTConfig("pot4", effort="balanced:rounds=1").effort == Effort(compensate=True, rounds=1)
    for wrong, message in {
        "balanced:rounds": "'rounds' is not an override",
        "balanced:colour=1": "colour: unknown key",
        "fast:weigh_tokens=true": "weigh_tokens changes Hessians",
        "slow:rounds=1": "unknown effort 'slow'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            potq.PoTConfig("pot4", effort=wrong)


def test_an_unknown_preset_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown effort 'slow'; the presets are fast, gptq, balanced, best, potptq"):
        potq.PoTConfig("pot4", effort="slow")
