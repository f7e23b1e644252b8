"""What plain modules are calibrated with: inputs of every form, or a callable."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import potq
from plain_helpers import Images, Net, image_inputs, net_inputs
from potq.config import Effort, PoTConfig
from potq.errors import ConfigError, DataError, ModelError
from potq.nn.packed import PackedModule


def test_every_form_of_calibration_gives_the_same_bits(net: Net) -> None:
    inputs, scale, config = net_inputs(3, 2), torch.tensor(1.5), PoTConfig("pot4")

    def run(model: nn.Module) -> None:
        for input in inputs:
            model(input, scale)

    packed = []
    for calibration in (
        [(input, scale) for input in inputs],
        ([input, scale] for input in inputs),
        [{"input": input, "scale": scale} for input in inputs],
        run,
    ):
        model = copy.deepcopy(net)
        potq.quantize(model, config, calibration)
        packed.append(model.state_dict())
    for other in packed[1:]:
        assert all(torch.equal(tensor, packed[0][name]) for name, tensor in other.items())


def test_what_calibrates_leaves_nothing_behind(net: Net) -> None:
    model = copy.deepcopy(net).train()
    inputs = net_inputs(2, 2)
    before = [input.clone() for input in inputs]
    potq.quantize(model, PoTConfig("pot4"), inputs)
    assert all(map(torch.equal, inputs, before))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _raises(model: nn.Module) -> None:
    model(torch.zeros(1, 20))
    raise RuntimeError("the disk is gone")


def _generator(model: nn.Module) -> Iterator[Any]:
    yield model(torch.zeros(1, 20))


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (_raises, "the calibration callable raised RuntimeError: the disk is gone"),
        (lambda model: None, r"the calibration callable never ran the module, as model\(input\) does$"),
        (_generator, "never ran the module, .*; it returned a generator, of which nothing ran"),
        ([], "calibration is empty; give at least one input"),
        (torch.zeros(2, 20), r"calibration is one tensor; give a list of inputs, \[tensor\] if it is one"),
        (3, "calibration is int; give inputs, or a callable that runs the module"),
        ([torch.zeros(1, 20), "text"], "calibration input 1 is str; each is a tensor, a tuple of arguments, or a dict"),
        (
            [torch.zeros(1, 20), torch.zeros(1, 8)],
            r"Net does not run on calibration input 1 \(of shapes \(1, 8\)\): Runtime",
        ),
        ([{"image": torch.zeros(1, 20)}], r"Net does not run on calibration input 0 .*: TypeError: .*'image'"),
    ],
)
def test_calibration_that_does_not_run_is_refused(net: Net, calibration: Any, said: str, effort: str) -> None:
    model = copy.deepcopy(net)
    with pytest.raises(DataError, match=said):
        potq.quantize(model, PoTConfig("pot4", effort=effort), calibration)
    assert not any(isinstance(module, PackedModule) or module._forward_hooks for module in model.modules())


def test_a_pass_that_fails_in_a_callable_that_goes_on_does_not_count() -> None:
    model, inputs = Images(), image_inputs(2, 2)

    def run(module: nn.Module) -> None:
        for input in (inputs[0], torch.zeros(1, 7, 7), inputs[1]):
            with suppress(RuntimeError):
                module(input)

    expected = copy.deepcopy(model)
    potq.quantize(expected, PoTConfig("pot4", effort="gptq"), inputs)
    potq.quantize(model, PoTConfig("pot4", effort="gptq"), run)
    assert torch.equal(model.state_dict()["deep.weight_packed"], expected.state_dict()["deep.weight_packed"])


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(20, 4)), nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))])
def test_empty_inputs_are_refused_by_name(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="0: its inputs on the calibration are empty"):
        potq.quantize(model, PoTConfig("pot4"), [torch.zeros(0, 20)])


def test_inputs_that_are_not_finite_are_refused_by_name(net: Net) -> None:
    for effort in ("gptq", "balanced"):
        with pytest.raises(
            ModelError, match=r"(stem|blocks\.0\.up): its inputs on the calibration( text)? are NaN or infinite"
        ):
            potq.quantize(copy.deepcopy(net), PoTConfig("pot4", effort=effort), [torch.full((1, 20), torch.nan)])


def test_what_needs_a_language_model_is_refused(net: Net) -> None:
    inputs = net_inputs(1, 2)
    for effort in ("best", "potptq", Effort(scope="block")):
        with pytest.raises(ConfigError, match=r"refines what a language model predicts, .*; use 'balanced'"):
            potq.quantize(net, PoTConfig("pot4", effort=effort), inputs)
    with pytest.raises(ConfigError, match="blocks= changes nothing with effort='fast'"):
        potq.quantize(net, PoTConfig("pot4"), blocks=["stem"])
    with pytest.raises(ConfigError, match="scale_method='fisher' needs the loss of a language model"):
        potq.quantize(net, PoTConfig("pot4", scale_method="fisher"), inputs)
    lacking: list[dict[str, Any]] = [{"effort": "balanced"}, {"scale_method": "weighted"}]
    for fields in lacking:
        with pytest.raises(ConfigError, match=r"=.* needs calibration: a list of inputs, or a callable that runs"):
            potq.quantize(net, PoTConfig("pot4", **fields))
    with pytest.raises(ModelError, match="Net is a plain module; token batches are for models of transformers"):
        potq.allocate(net, PoTConfig("pot4"), ["pot3", "pot4"], [torch.zeros(1, 4, dtype=torch.long)])
    assert not any(isinstance(module, PackedModule) for module in net.modules())


def test_a_hugging_face_model_takes_inputs_by_name_too(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    with pytest.raises(ConfigError, match="blocks= is for modules that run on inputs"):
        potq.quantize(tiny_model, PoTConfig("pot4"), [tokens], blocks=["model.layers.0"])
    by_tokens, by_name, by_callable = (copy.deepcopy(tiny_model) for _ in range(3))
    report = potq.quantize(by_tokens, PoTConfig("pot4"), [tokens])
    named = potq.quantize(by_name, PoTConfig("pot4"), [{"input_ids": tokens}])
    potq.quantize(by_callable, PoTConfig("pot4"), lambda model: model(tokens))
    inside = [name for name in by_tokens.state_dict() if "layers" in name]
    for other in (by_name, by_callable):
        assert all(torch.equal(by_tokens.state_dict()[name], other.state_dict()[name]) for name in inside)
    assert [entry.algorithm for entry in named.modules] == [entry.algorithm for entry in report.modules]
    assert named.remarks == []
