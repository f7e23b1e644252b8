"""The blocks of plain modules, and their calibration."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import potq
from plain_helpers import Block, Images, Net, image_inputs, net_inputs
from potq.config import EFFORTS, PoTConfig
from potq.errors import ConfigError, ModelError
from potq.nn.plan import plan
from potq.nn.report import QuantReport
from potq.ptq.blocks import HiddenStates, second_moments, shared_inputs
from potq.ptq.chain import find_lists, record_chain
from potq.ptq.feed import Feed

WHOLE = "calibrated as one block, which keeps all inputs in memory: "


def _error(
    model: Any, calibration: Any, inputs: list[Tensor], config: PoTConfig, **options: Any
) -> tuple[float, QuantReport]:
    """Of the outputs on ``inputs``, squared, against those in full precision."""
    packed = copy.deepcopy(model)
    report = potq.quantize(packed, config, calibration, **options)
    potq.kernels.set_activations(packed, "float")
    with torch.no_grad():
        return float(sum((packed(each) - model(each)).square().mean() for each in inputs)), report


# ---- what calibration gains


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("scheme", ["pot3", "apot4"])
def test_calibrated_is_better_than_fast_in_blocks(net: Net, scheme: str) -> None:
    test = net_inputs(8, 3)
    fast, _ = _error(net, None, test, PoTConfig(scheme))
    gptq, _ = _error(net, net_inputs(8, 2), test, PoTConfig(scheme, effort="gptq"))
    balanced, report = _error(net, net_inputs(8, 2), test, PoTConfig(scheme))
    assert gptq < 0.5 * fast
    assert balanced < 0.4 * fast
    assert {entry.algorithm for entry in report.modules} == {"gptq+descent"}
    assert all(entry.output_snr_db is not None for entry in report.modules)
    assert report.remarks == []


@pytest.mark.usefixtures("one_thread")
def test_calibrated_is_better_than_fast_with_convolutions(images: Images) -> None:
    test = image_inputs(8, 3)
    fast, _ = _error(images, None, test, PoTConfig("pot3"))
    balanced, report = _error(images, image_inputs(8, 2), test, PoTConfig("pot3"))
    assert balanced < 0.7 * fast
    assert {entry.name: entry.algorithm for entry in report.modules} == {
        "first.0": "gptq+descent",
        "groups": "rtn/mse (a convolution in groups)",
        "deep": "gptq+descent",
        "lines": "gptq+descent",
        "head": "gptq+descent",
    }
    assert report.remarks == [WHOLE + "no list of modules of one kind is in it"]
    assert report.remarks[0] in report.to_markdown()


def test_weighted_scales_know_convolutions(images: Images) -> None:
    report = _error(images, image_inputs(2, 2), [], PoTConfig("pot4", scale_method="weighted"))[1]
    algorithms = {entry.name: entry.algorithm for entry in report.modules}
    assert algorithms.pop("groups") == "rtn/mse-exact"
    assert set(algorithms.values()) == {"rtn/weighted-exact"}


# ---- the blocks


def _lists(model: nn.Module, inputs: Any, blocks: Any = None) -> tuple[list[list[str]], list[str]]:
    return find_lists(model, Feed.of(inputs), plan(model, PoTConfig("pot4")), blocks)


def _chain(model: nn.Module, inputs: Any, names: list[str] | None = None) -> tuple[list[str], list[str]]:
    (found,), remarks = _lists(model, inputs, names)
    return found, remarks


def _states(model: nn.Module, inputs: Any) -> tuple[HiddenStates, list[nn.Module]]:
    chain = record_chain(model, Feed.of(inputs), _chain(model, inputs)[0], torch.clone)
    return HiddenStates(chain.calls), list(chain.blocks)


def test_blocks_are_the_largest_list_of_alike_modules(net: Net) -> None:
    names = ["blocks.0", "blocks.1", "blocks.2"]
    assert _chain(net, net_inputs(1, 2)) == (names, [])
    assert _chain(nn.Sequential(*(Block(20) for _ in range(2))), net_inputs(1, 2)) == (["0", "1"], [])
    assert _chain(net, net_inputs(1, 2), names[:2]) == (names[:2], [])


def test_blocks_may_change_the_shape() -> None:
    model = nn.Sequential(nn.Linear(20, 32), nn.Linear(32, 8), nn.Linear(8, 4))
    assert _chain(model, net_inputs(1, 2)) == (["0", "1", "2"], [])
    report = potq.quantize(model, PoTConfig("pot4"), net_inputs(2, 2))
    assert {entry.algorithm for entry in report.modules} == {"gptq+descent"}


def test_hidden_states_are_those_of_the_module(net: Net) -> None:
    inputs = net_inputs(2, 2)
    states, blocks = _states(net, inputs)
    with torch.no_grad():
        for block in blocks:
            states.advance(block)
        for call, input in zip(states, inputs, strict=True):
            torch.testing.assert_close(net.head(call.hidden), net(input))


class Odd(nn.Module):
    """Alike modules that are no chain."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.layers = nn.ModuleList(nn.Linear(20, 20) for _ in range(3))
        if what == "shared":
            self.layers[2].weight = self.layers[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        first, second, third = self.layers
        result: Tensor
        if self.what == "parallel":
            result = first(hidden) + second(hidden) + third(hidden)
        elif self.what == "skipped":
            result = second(first(hidden))
        elif self.what == "keyword":
            result = third(input=second(input=first(input=hidden)))
        elif self.what == "again":
            result = first(third(second(first(hidden))))
        else:
            result = third(second(first(hidden)))
        return result


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("parallel", "block 1 does not get what the one before it puts out"),
        ("skipped", "some of them never run"),
        ("keyword", "their first argument is no tensor"),
        ("again", "they do not run once each, in their order"),
        ("shared", r"layers\.0 and layers\.2 share a weight"),
    ],
)
def test_what_is_no_chain_is_one_block_or_refused_if_it_was_named(what: str, why: str) -> None:
    model, inputs = Odd(what), net_inputs(2, 2)
    names, remarks = _chain(model, inputs)
    assert names == [""]
    assert remarks[0].startswith(WHOLE)
    assert why.replace("\\", "") in remarks[0]
    with pytest.raises(ModelError, match=rf"blocks layers\.0, layers\.1, layers\.2 cannot be calibrated one by one: {why}"):
        _chain(model, inputs, ["layers.0", "layers.1", "layers.2"])
    report = potq.quantize(model, PoTConfig("pot4"), inputs)
    missed = {"layers.2"} if what == "skipped" else set()
    assert {entry.name for entry in report.modules if "no input reaches it" in entry.algorithm} == missed
    assert report.remarks == remarks


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([], r"blocks is \[\]; give a list of module names"),
        ("blocks.0", "blocks is 'blocks.0'; give a list of module names"),
        (["blocks.7"], r"blocks names 'blocks\.7', which is no module of Net; it has stem, blocks"),
        (["blocks", "blocks.1"], r"blocks names blocks\.1 and blocks, and a block is not part of another"),
        (["stem", "stem"], "blocks names stem and stem"),
    ],
)
def test_names_of_blocks_are_checked(net: Net, blocks: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        potq.quantize(copy.deepcopy(net), PoTConfig("pot4"), net_inputs(1, 2), blocks=blocks)


def test_a_layer_that_runs_twice_is_calibrated_on_both_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.beside = nn.Linear(20, 20), nn.Linear(20, 20)

        def forward(self, input: Tensor) -> Tensor:
            result: Tensor = self.layer(self.layer(input)) + self.beside(input)
            return result

    model, inputs = Twice(), net_inputs(3, 2)
    states, _ = _states(model, inputs)
    assert shared_inputs(model, ["layer", "beside"], states) == [["layer"], ["beside"]]
    with torch.no_grad():
        rows = torch.cat([row for input in inputs for row in (input, model.layer(input))])
    torch.testing.assert_close(second_moments(model, ["layer"], states)[0], rows.t() @ rows / len(rows))


def test_layers_that_read_one_tensor_in_two_ways_have_their_own_moments() -> None:
    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.short, self.long, self.alike = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 1)

        def forward(self, input: Tensor) -> Tensor:
            result: Tensor = self.short(input) + self.long(input) + self.alike(input)
            return result

    model, inputs = Ways(), [torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))]
    states, _ = _states(model, inputs)
    assert shared_inputs(model, ["short", "long", "alike"], states) == [["short", "alike"], ["long"]]
    assert second_moments(model, ["long"], states)[0].shape == (12, 12)


def test_an_embedding_before_the_blocks() -> None:
    model = nn.Sequential(nn.Embedding(30, 16), nn.Sequential(*(Block(16) for _ in range(2))), nn.Linear(16, 30))
    report = potq.quantize(model, PoTConfig("pot4"), [torch.arange(20).view(2, 10)])
    assert [entry.algorithm for entry in report.modules] == ["rtn/mse-16", *["gptq+descent"] * 5]
    assert report.remarks == []


def test_what_is_outside_the_blocks_says_why_it_is_rounded() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.groups = nn.Conv1d(16, 16, 3, padding=1, groups=2)
            self.blocks = nn.ModuleList(Block(16) for _ in range(2))
            self.tensor, self.never = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, input: Tensor) -> Tensor:
            hidden = self.groups(input).transpose(1, 2)
            for block in self.blocks:
                hidden = block(hidden)
            result: Tensor = self.tensor(hidden)
            return result

    schemes = {"tensor": potq.QuantScheme("pot4", group_size="tensor")}
    model, inputs = Around(), [torch.randn(2, 16, 9, generator=torch.Generator().manual_seed(0))]
    report = potq.quantize(model, PoTConfig("pot4", targets=schemes), inputs)
    assert {entry.name: entry.algorithm for entry in report.modules if "blocks" not in entry.name} == {
        "groups": "rtn/mse (a convolution in groups)",
        "tensor": "rtn/mse (one scale for all rows)",
        "never": "rtn/mse (no input reaches it)",
    }


# ---- several lists of blocks


class Crossed(nn.Module):
    """A decoder block, which reads what an encoder put out, as a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.cross = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, hidden: Tensor, *, seen: Tensor) -> Tensor:
        result: Tensor = hidden + torch.tanh(self.own(hidden) + self.cross(seen))
        return result


class TwoSides(nn.Module):
    """An encoder, and a decoder of more weights behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.ModuleList(Crossed() for _ in range(2))
        self.encoder = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(16, 3) for _ in range(2))

    def encode(self, input: Tensor) -> Tensor:
        for block in self.encoder:
            input = block(input)
        return input

    def forward(self, input: Tensor, hidden: Tensor) -> Tensor:
        seen = self.encode(input)
        for block in self.decoder:
            hidden = block(hidden, seen=seen)
        first, second = self.heads
        result: Tensor = first(hidden) + second(hidden)
        return result


def _two_sides() -> tuple[TwoSides, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TwoSides().eval()
    return model, [
        (torch.randn(4, 9, 16, generator=generator), torch.randn(4, 9, 16, generator=generator)) for _ in range(3)
    ]


def test_an_encoders_blocks_come_before_its_decoders(tmp_path: Path) -> None:
    model, inputs = _two_sides()
    lists = [["encoder.0", "encoder.1"], ["decoder.0", "decoder.1"]]
    assert _lists(model, inputs) == (lists, [])  # the heads run side by side, and are no list of blocks
    assert _lists(model, inputs, lists[::-1]) == (lists, [])
    named, found = copy.deepcopy(model), copy.deepcopy(model)
    report = potq.quantize(found, PoTConfig("pot3", group_size=16), inputs, work_folder=tmp_path / "work")
    potq.quantize(named, PoTConfig("pot3", group_size=16), inputs, blocks=lists)
    assert all(torch.equal(tensor, named.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert {entry.algorithm for entry in report.modules} == {"gptq+descent"}
    assert len(list((tmp_path / "work").glob("block-*.safetensors"))) == 4
    again = copy.deepcopy(model)
    potq.quantize(again, PoTConfig("pot3", group_size=16), inputs, work_folder=tmp_path / "work")
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_a_decoder_sees_what_the_quantized_encoder_puts_out() -> None:
    """The same bits as for a model whose encoder is those quantized weights to begin with."""
    model, inputs = _two_sides()
    config = PoTConfig("pot3", group_size=16)
    whole = copy.deepcopy(model)
    potq.quantize(whole, config, inputs)
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    encoder = {name for name, _ in whole.named_modules() if name.startswith("encoder")}
    for name in encoder:
        if isinstance(layer := second.get_submodule(name), nn.Linear):
            layer.weight.data = whole.get_submodule(name).quantized.dequantize()
    alone = PoTConfig("pot3", group_size=16, ignore=["encoder.*"])
    lists = [["decoder.0", "decoder.1"]]
    potq.quantize(second, alone, inputs, blocks=lists)
    potq.quantize(first, alone, inputs, blocks=lists)
    codes = [name for name in whole.state_dict() if name.startswith("decoder") and name.endswith(("packed", "scale"))]
    assert codes
    assert all(torch.equal(whole.state_dict()[name], second.state_dict()[name]) for name in codes)
    assert not all(torch.equal(whole.state_dict()[name], first.state_dict()[name]) for name in codes)


@pytest.mark.parametrize(
    ("blocks", "kind", "said"),
    [
        ([["encoder.0", "encoder.1"], ["encoder.1"]], ConfigError, r"blocks names encoder\.1 and encoder\.1"),
        ([["encoder.0"], []], ConfigError, "give a list of module names, in the order they run, or several lists"),
        (
            [["encoder.0", "encoder.1"], ["heads.0", "heads.1"]],
            ModelError,
            r"heads\.0, heads\.1 cannot be calibrated one by one",
        ),
    ],
)
def test_lists_of_blocks_are_checked(blocks: Any, kind: Any, said: str) -> None:
    model, inputs = _two_sides()
    with pytest.raises(kind, match=said):
        potq.quantize(model, PoTConfig("pot4"), inputs, blocks=blocks)


# ---- a killed run


def test_a_work_folder_serves_inputs_and_refuses_a_callable(net: Net, tmp_path: Path) -> None:
    inputs = net_inputs(2, 2)
    expected, found = copy.deepcopy(net), copy.deepcopy(net)
    potq.quantize(expected, PoTConfig("pot4"), inputs)
    potq.quantize(copy.deepcopy(net), PoTConfig("pot4"), inputs, work_folder=tmp_path / "work")
    assert len(list((tmp_path / "work").glob("block-*.safetensors"))) == 3
    potq.quantize(found, PoTConfig("pot4"), inputs, work_folder=tmp_path / "work")
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in expected.state_dict().items())
    with pytest.warns(UserWarning, match="was left by another run"):
        potq.quantize(copy.deepcopy(net), PoTConfig("pot4"), net_inputs(2, 4), work_folder=tmp_path / "work")
    with pytest.raises(ConfigError, match="work_folder needs calibration as inputs"):
        potq.quantize(copy.deepcopy(net), PoTConfig("pot4"), lambda model: model(inputs[0]), work_folder=tmp_path / "work")


def test_efforts_are_all_decided() -> None:
    """A new effort is either taken or refused; this list is what the documentation says."""
    assert [name for name, effort in EFFORTS.items() if effort.scope == "none"] == ["fast", "gptq", "balanced"]
