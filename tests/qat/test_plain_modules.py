"""prepare and convert on modules that are no Hugging Face models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import potq
from potq.config import PoTConfig
from potq.errors import ModelError
from potq.nn.packed import PoTConv1d, PoTConv2d, PoTLinear
from potq.numerics.scheme import PRESETS
from potq.qat import QATSettings, convert, prepare, refresh_scales
from potq.qat.nn import QATConv1d, QATConv2d
from potq.qat.preparation import qat_modules

SCALES = ("fixed", "searched", "learned")


class Standardized(nn.Conv2d):
    """A forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.line = nn.Conv1d(16, 16, 3, padding="same", padding_mode="circular", dilation=2)
        self.plane = nn.Sequential(nn.Conv2d(1, 8, 3, groups=1, stride=2), Standardized(8, 8, 3, groups=2))
        self.back = nn.Linear(8, 16, bias=False)
        self.head = nn.Linear(16, 20)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.line(self.embed(ids).transpose(1, 2))
        hidden = self.plane(hidden[:, None]).mean((-1, -2))
        result: Tensor = self.head(self.back(hidden))
        return result


IDS = torch.arange(60).view(3, 20) % 20


def _net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def _train(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        refresh_scales(model)
        loss = nn.functional.cross_entropy(model(IDS), torch.tensor([1, 2, 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.usefixtures("reference_backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", [*sorted(PRESETS), "pot4:group_size=tensor", "mxpot:row_scale=true"])
def test_prepared_and_converted_modules_agree_bit_for_bit(scheme: str, dtype: torch.dtype) -> None:
    model: Any = _net().to(dtype)
    settings = QATSettings(scales=SCALES[len(scheme) % 3])
    keys = model.state_dict().keys()
    prepare(model, PoTConfig(scheme), settings)
    assert isinstance(model.line, QATConv1d)
    assert isinstance(model.plane[0], QATConv2d)
    if settings.scales != "learned":
        assert model.state_dict().keys() == keys
    before = copy.deepcopy(model.state_dict())
    _train(model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"line.weight", "plane.0.weight", "plane.1.weight", "back.weight", "embed.weight"} <= moved
    with torch.no_grad():
        expected = model(IDS)
        report = convert(model)
        assert torch.equal(model(IDS), expected)
    assert {entry.algorithm for entry in report.modules} == {f"qat/{settings.scales}"}
    assert isinstance(model.line, PoTConv1d)
    assert isinstance(model.plane[1], PoTConv2d)
    assert isinstance(model.head, PoTLinear)


def test_a_trained_module_is_saved_and_loaded(tmp_path: Path) -> None:
    model = _net()
    prepare(model, PoTConfig("pot3"))
    _train(model)
    convert(model)
    potq.save_module(model, tmp_path / "net")
    loaded = potq.load_module(tmp_path / "net", Net).eval()
    with torch.no_grad():
        assert torch.equal(loaded(IDS), model(IDS))


def test_training_goes_on_from_a_packed_module() -> None:
    start: Any = _net().to(memory_format=torch.channels_last)
    model: Any = copy.deepcopy(start)
    potq.quantize(start, PoTConfig("pot4"), [IDS])
    with torch.no_grad():
        start.back.quantized.scale.mul_(2)  # what is taken over is start's, not the module's own
    prepare(model, start=start)
    for name, module in qat_modules(model).items():
        assert torch.equal(module.quantized().dequantize(), start.get_submodule(name).quantized.dequantize())
    convert(model)
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS), start.eval()(IDS))


def test_layers_that_are_never_called_are_refused() -> None:
    for module, read in (
        (nn.Sequential(nn.MultiheadAttention(16, 2)), r"0\.out_proj"),
        (nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32)), r"0\.self_attn\.out_proj, 0\.linear1, 0\.linear2"),
    ):
        with pytest.raises(ModelError, match=rf"reads the weights of {read} without calling these layers"):
            prepare(module, PoTConfig("pot4"))
        assert not qat_modules(module)
    model = nn.Sequential(nn.MultiheadAttention(16, 2), nn.Linear(16, 4))
    assert [target.name for target in prepare(model, PoTConfig("pot4", ignore=["out_proj"])).targets] == ["1"]
