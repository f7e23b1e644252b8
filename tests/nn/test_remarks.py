"""Remarks on schemes that are allowed and hardly meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import potq
from potq import native
from potq.nn.plan import WeightPlan, plan
from potq.nn.remarks import packed_targets, remarks

compiled = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")
FIRST = "model.layers.0.self_attn.q_proj"


def of(model: Any, **settings: Any) -> list[str]:
    return remarks(plan(model, potq.PoTConfig("pot4", **settings)).targets, torch.float32)


@compiled
@pytest.mark.parametrize("size", [16, 32, "row", "tensor"])
def test_sizes_that_fit(tiny_model: Any, size: Any) -> None:
    assert of(tiny_model, group_size=size) == []


@compiled
def test_a_short_last_group(tiny_model: Any) -> None:
    assert of(tiny_model, group_size=48) == [
        f"groups of 48 leave a short last one of 16 in rows of 64: {FIRST} and 11 more",
        "groups of 48 leave a short last one of 16 in rows of 160: model.layers.0.mlp.down_proj and 1 more",
    ]


def test_groups_longer_than_a_row(tiny_model: Any) -> None:
    assert f"groups of 1000 are longer than rows of 64, which have one scale each: {FIRST} and 11 more" in of(
        tiny_model, group_size=1000
    )


@compiled
def test_no_kernel(tiny_model: Any) -> None:
    slow = "no kernel computes with {} (cpu: {}), so the slow torch reference does: " + FIRST + " and 13 more"
    assert slow.format("pot4-g33", "the group size is not a multiple of 16") in of(tiny_model, group_size=33)
    config = potq.PoTConfig("pot5", group_size=32)
    found = remarks(plan(tiny_model, config).targets, torch.float32)
    assert found == [slow.format("pot5-g32", "levels of -16384..16384 exceed int8")]


def test_a_packed_model_has_those_of_its_plan(tiny_model: Any) -> None:
    config = potq.PoTConfig("pot4", group_size=33)
    expected = remarks(plan(tiny_model, config).targets, torch.float32)
    potq.quantize(tiny_model, config)
    assert remarks(packed_targets(tiny_model), torch.float32) == expected


def test_one_module_is_named_alone() -> None:
    target = WeightPlan("head", "head", (4, 20), potq.PoTConfig("pot4", group_size=16).scheme)
    assert remarks([target], torch.float32)[0] == "groups of 16 leave a short last one of 4 in rows of 20: head"
