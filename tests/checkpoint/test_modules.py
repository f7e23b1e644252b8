"""Folders of plain modules: bit for bit what was saved, and strict about what the folder and the module have."""

from __future__ import annotations

import copy
import hashlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM

import potq
from potq.errors import CheckpointError, ConfigError, ModelError
from potq.nn.packed import PackedModule
from potq.nn.packed_model import packed_modules
from potq.numerics.scheme import QuantScheme


class Net(nn.Module):
    """Everything that a folder can hold: convolutions, a tie, a shared layer, buffers of both kinds, a view."""

    def __init__(self, width: int = 16, spare: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.convolve = nn.Conv1d(width, 32, 3, padding=1)
        self.deep = nn.Conv1d(32, 32, 5, padding="same", dilation=2, groups=4)
        self.norm = nn.BatchNorm1d(32)
        self.layer = nn.Linear(32, 50, bias=False)
        self.again = self.layer
        self.back = nn.Linear(50, width)
        self.head = nn.Linear(width, 50)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.arange(3.0))
        self.register_buffer("view", self.shift[:2])
        self.register_buffer("table", torch.arange(50.0), persistent=False)
        if spare:
            self.spare = nn.Parameter(torch.zeros(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        inner = self.norm(self.deep(self.convolve(self.embed(ids).transpose(1, 2)).relu())).transpose(1, 2)
        result: torch.Tensor = self.head(self.back(self.again(inner) + self.layer(inner))) + self.shift.sum() + self.table
        return result


IDS = torch.arange(18).view(2, 9)


def _net(seed: int = 0, **options: Any) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(**options).eval()


def _saved(folder: Path, scheme: str = "pot4", net: nn.Module | None = None) -> nn.Module:
    net = net or _net()
    potq.quantize(net, potq.PoTConfig(scheme))
    potq.save_module(net, folder)
    return net


def _schemes(model: nn.Module) -> dict[str, QuantScheme]:
    return {name: module.scheme for name, module in packed_modules(model).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", [*potq.PRESETS, "pot4:group_size=tensor", "mxpot:row_scale=true"])
def test_bitwise_round_trip(scheme: str, dtype: torch.dtype, tmp_path: Path) -> None:
    saved = _saved(tmp_path / "net", scheme, _net().to(dtype))
    loaded = potq.load_module(tmp_path / "net", _net(1)).eval()
    loaded.table = loaded.table.to(dtype)  # no folder holds it
    assert saved.state_dict().keys() == loaded.state_dict().keys()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
        assert tensor.dtype == loaded.state_dict()[name].dtype, name
    assert _schemes(saved) == _schemes(loaded)
    with torch.no_grad():
        assert torch.equal(saved(IDS), loaded(IDS))
    assert loaded.quant_report == saved.quant_report
    potq.save_module(loaded, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "net/model.safetensors").read_bytes()


def _on_meta() -> nn.Module:
    with torch.device("meta"):
        net = Net()
    net.table = torch.arange(50.0)
    return net.eval()


@pytest.mark.parametrize("make", [lambda: _net(1), lambda: _net, lambda: Net, _on_meta])
def test_every_kind_of_module_is_filled(make: Callable[[], Any], tmp_path: Path) -> None:
    saved = _saved(tmp_path / "net")
    given = make()
    loaded: Any = potq.load_module(tmp_path / "net", given).eval()
    if isinstance(given, nn.Module):
        assert loaded is given
    assert not [name for name, tensor in loaded.state_dict().items() if tensor.is_meta]
    assert loaded.layer is loaded.again
    assert loaded.head.tied_to is loaded.embed
    assert torch.equal(loaded(IDS), saved(IDS))


GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_golden_folder_is_read() -> None:
    make: Any = runpy.run_path(str(GOLDEN / "make_golden.py"))["golden_module"]
    source, loaded = make(), potq.load_module(GOLDEN / "module", make)
    packed: dict[str, Any] = dict(packed_modules(loaded))
    assert {name: found.scheme.name for name, found in packed.items()} == {
        "embed": "int8-g64",
        "conv": "pot3s-g32",
        "image": "mxpot-g32-e8m0-row",
        "layer": "pot3s-g32",
        "head": "int8-g64",
    }
    assert packed["head"].tied_to is packed["embed"]
    digest = hashlib.blake2b(digest_size=8)
    for name, found in packed.items():
        exact = source.get_submodule(name).weight
        assert (found.weight.float() - exact.float()).norm() < 0.3 * exact.float().norm(), name
        assert found.weight.dtype == torch.bfloat16
        digest.update(found.quantized.dequantize().numpy().tobytes())
    assert digest.hexdigest() == "ca8f750cc8556367"


def test_a_whole_folder_is_written_and_a_shared_tensor_once(tmp_path: Path) -> None:
    _saved(tmp_path / "net")
    assert sorted(file.name for file in (tmp_path / "net").iterdir()) == [
        "config.json",
        "model.safetensors",
        "quant_report.json",
    ]
    stored = load_file(tmp_path / "net/model.safetensors")
    assert "layer.weight_packed" in stored
    assert not [name for name in stored if name.startswith(("again", "head.weight", "table"))]
    described = json.loads((tmp_path / "net/config.json").read_text())["potq_module"]
    assert described["weights"]["embed"]["tied"] == ["head"]
    assert described["weights"]["convolve"]["shape"] == [32, 48]
    with pytest.raises(CheckpointError, match="net exists; choose another output folder"):
        potq.save_module(_saved(tmp_path / "second"), tmp_path / "net")
    potq.save_module(_saved(tmp_path / "third", "pot3"), tmp_path / "net", force=True)
    assert potq.load_module(tmp_path / "net", Net).quant_report.modules[1].scheme == "pot3-g64"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda net: setattr(net, "more", nn.Linear(3, 3)), r"net lacks more\.bias, more\.weight, which the module has"),
        (lambda net: delattr(net, "norm"), r"holds norm\.bias, norm\.num_batches_tracked, .*which the module has no place"),
        (lambda net: delattr(net, "back"), r"holds a packed weight of back, which the module has no layer for"),
        (lambda net: setattr(net, "norm", nn.BatchNorm1d(8)), r"holds norm\.weight as \[32\], the module has it as \[8\]"),
        (lambda net: setattr(net, "back", nn.Linear(50, 8)), r"holds back as \[16, 50\], the module has it as \[8, 50\]"),
        (lambda net: setattr(net.head, "weight", nn.Parameter(torch.zeros(50, 8))), r"holds head as \[50, 16\], the module"),
    ],
)
def test_a_module_that_differs_is_refused_by_name_and_not_changed(
    change: Callable[[Any], None], said: str, tmp_path: Path
) -> None:
    _saved(tmp_path / "net")
    net = _net(1)
    change(net)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match=said):
        potq.load_module(tmp_path / "net", net)
    assert not any(isinstance(module, PackedModule) for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_damaged_folders_are_refused_by_name(tmp_path: Path) -> None:
    _saved(tmp_path / "net")
    file, config = tmp_path / "net/model.safetensors", tmp_path / "net/config.json"
    tensors, fields = load_file(file), json.loads(config.read_text())

    def refused(said: str) -> None:
        with pytest.raises(CheckpointError, match=said):
            potq.load_module(tmp_path / "net", Net)

    save_file({**tensors, "layer.weight_scale": -tensors["layer.weight_scale"]}, file)
    refused("layer: 50 scales are negative")
    save_file({**tensors, "layer.weight_packed": tensors["layer.weight_packed"][:, 1:].contiguous()}, file)
    refused(r"layer\.weight_packed is U8 \[50, 15\], expected U8 \[50, 16\]")
    file.write_bytes(file.read_bytes()[:200])
    refused("model.safetensors is truncated or corrupted")
    file.unlink()
    refused("model.safetensors is truncated or corrupted")
    (tmp_path / "net/quant_report.json").write_text("{")
    refused(r"quant_report\.json is damaged; delete it")
    config.write_text(json.dumps({**fields, "potq_module": {**fields["potq_module"], "version": 2}}))
    refused("version 2 of a module's folder is not readable here")
    config.write_text(json.dumps({**fields, "potq_module": {"version": 1}}))
    refused(r"config\.json is damaged \(KeyError: 'weights'\)")
    config.write_text(json.dumps({**fields, "quantization_config": {**fields["quantization_config"], "features": ["far"]}}))
    refused(r"config\.json uses the feature 'far', which this potq does not know")
    config.write_text("{}")
    refused("was not written by potq.save_module")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        potq.load_module(tmp_path / "nowhere", Net)


def test_what_makes_no_module_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "net")

    def broken() -> nn.Module:
        raise RuntimeError("no such file")

    for given, said in (
        (broken, "the callable that makes the module raised RuntimeError: no such file"),
        (lambda: None, "the callable that makes the module returned NoneType, no torch.nn.Module"),
        (3, "load_module needs a torch.nn.Module or a callable that makes one, not int"),
        (_saved(tmp_path / "other"), "the module is quantized already"),
    ):
        with pytest.raises(ModelError, match=said):
            potq.load_module(tmp_path / "net", given)  # type: ignore[arg-type]
    with torch.device("meta"):
        lost = Net()
    with pytest.raises(ModelError, match="table: on the meta device, and no folder holds them"):
        potq.load_module(tmp_path / "net", lost)
    with pytest.raises(ConfigError, match="device nowhere is not available here"):
        potq.load_module(tmp_path / "net", Net, device="nowhere")


def test_what_cannot_be_saved_is_refused(tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def get_extra_state(self) -> Any:
            return {"steps": 3}

    with pytest.raises(ModelError, match=r"the module is not quantized; call potq\.quantize first"):
        potq.save_module(Net(), tmp_path / "out")
    extra = Extra()
    potq.quantize(extra, potq.PoTConfig("pot4"))
    with pytest.raises(ModelError, match="_extra_state: state that is no tensor"):
        potq.save_module(extra, tmp_path / "out")
    potq.quantize(tiny_model, potq.PoTConfig("pot4"))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM is a Hugging Face model; save it with potq\.save"):
        potq.save_module(tiny_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_of_the_two_kinds_point_at_each_other(packed_folder: Path, tmp_path: Path) -> None:
    _saved(tmp_path / "net")
    with pytest.raises(ModelError, match=r"net holds a plain module; potq\.load_module loads it"):
        potq.load(tmp_path / "net")
    with pytest.raises(CheckpointError, match=r"was not written by potq\.save_module; potq\.load reads Hugging"):
        potq.load_module(packed_folder, Net)


def test_a_plain_module_is_no_checkpoint_of_save(tmp_path: Path) -> None:
    net: Any = _saved(tmp_path / "net")
    with pytest.raises(ModelError, match=r"Net is a plain module; potq\.save_module saves it"):
        potq.save(net, tmp_path / "out")
