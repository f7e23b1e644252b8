"""Plain modules: which they are, what is found in them, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, MambaConfig, MambaForCausalLM

import potq
from potq.config import PoTConfig
from potq.errors import ConfigError, ModelError
from potq.nn.packed import PackedModule, PoTEmbedding, PoTLinear
from potq.nn.plain import is_plain, packed_config
from potq.nn.plan import plan


class Tied(nn.Module):
    """An embedding, a head tied to it, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"width": 16}  # as many modules have one of their own
        self.embed = nn.Embedding(40, 16)
        self.first = nn.Sequential(nn.Linear(16, 16))
        self.second = nn.Sequential(self.first[0], nn.ReLU())
        self.head = nn.Linear(16, 40)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.second(self.first(self.embed(ids))))
        return result


def test_a_module_with_a_config_of_its_own_is_plain(tiny_model: LlamaForCausalLM) -> None:
    assert is_plain(Tied())
    assert is_plain(nn.Sequential(tiny_model))
    assert not is_plain(tiny_model)


class Halved(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) / 2


def test_dequantize_makes_the_float_module_again() -> None:
    """What errors for a write advise."""
    model: Any = nn.ModuleDict({"tied": Tied(), "conv": nn.Conv1d(8, 4, 3, groups=2), "own": Halved(16, 8)})
    names, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    potq.quantize(model, PoTConfig("pot4:group_size=16", embedding="pot4"))
    with pytest.raises(ModelError, match=r"model\.dequantize\(\)"):
        model["own"].weight.data.zero_()
    weights = {name: model.get_submodule(name).weight.clone() for name in ("tied.embed", "conv", "own")}
    assert model.dequantize() is model
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.state_dict()) == names
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in weights.items())
    assert model["tied"].head.weight is model["tied"].embed.weight
    assert packed_config(model) is None
    model.requires_grad_(True)["own"](torch.ones(1, 16)).sum().backward()
    assert model["own"].weight.grad is not None
    potq.quantize(model, PoTConfig("pot4:group_size=16", embedding="pot4"))
    assert torch.equal(model["own"].weight, weights["own"])


def test_ties_and_shared_modules_stay_shared() -> None:
    model = Tied()
    before = copy.deepcopy(model)
    report = potq.quantize(model, PoTConfig("pot4"))
    assert [(entry.name, entry.kind, entry.tied) for entry in report.modules] == [
        ("embed", "embedding", ("head",)),
        ("first.0", "linear", ()),
    ]
    assert model.first[0] is model.second[0]
    assert isinstance(model.first[0], PoTLinear)
    assert isinstance(model.embed, PoTEmbedding)
    packed: Any = model
    before.first[0].weight.data = packed.first[0].quantized.dequantize()
    before.embed.weight.data = packed.embed.quantized.dequantize()
    potq.kernels.set_activations(model, "float")
    ids = torch.arange(12).view(2, 6)
    torch.testing.assert_close(model(ids), before(ids))
    assert packed_config(model) == PoTConfig("pot4", effort="fast")
    assert report.weights == 40 * 16 + 40 + 16 * 16 + 16


def test_a_conv1d_of_gpt2_is_replaced_in_every_parent() -> None:
    from transformers.pytorch_utils import Conv1D

    shared = Conv1D(8, 16)  # type: ignore[no-untyped-call]  # transformers has no types here
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    potq.quantize(model, PoTConfig("pot4"))
    first: Any = model["a"]
    second: Any = model["b"]
    assert isinstance(first[0], PoTLinear)
    assert first[0] is second[0]


def test_patterns_and_what_is_skipped() -> None:
    model = nn.ModuleDict(
        {
            "gru": nn.GRU(4, 4),
            "space": nn.Conv3d(1, 1, 2),
            "back": nn.ConvTranspose1d(2, 2, 2),
            "norm": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "left": nn.Linear(4, 4),
            "other": nn.Conv1d(4, 4, 2),
            "plain": nn.Linear(4, 4),
        }
    )
    config = PoTConfig("pot4", targets={"other": "int8"}, ignore=["left"])
    found = plan(model, config)
    assert {target.name: target.scheme.name for target in found.targets} == {"other": "int8-g64", "plain": "pot4-g64"}
    reasons = {each.name: each.reason for each in found.skipped}
    assert reasons["left"] == "ignored by config"
    assert reasons["norm"] == "its weight is computed anew at every use (weight_norm or another parametrization)"
    assert reasons["space.weight"] == "Conv3d with a 1x1x2x2x2 weight is not supported"
    assert {"gru.weight_ih_l0", "back.weight"} <= reasons.keys()
    with pytest.raises(ConfigError, match="pattern 'nowhere' matches no module"):
        plan(model, PoTConfig("pot4", ignore=["nowhere"]))


def test_convolutions_of_hugging_face_models_stay() -> None:
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = MambaForCausalLM(config)
    found = plan(model, PoTConfig("pot4"))
    assert not [target for target in found.targets if target.kind == "convolution"]
    assert [each.reason for each in found.skipped if "conv1d" in each.name] == [
        "Conv1d with a 32x1x4 weight is not supported"
    ]


def test_what_cannot_be_replaced_is_refused() -> None:
    for module in (nn.Linear(4, 4), nn.Conv2d(1, 1, 1), nn.Embedding(4, 4)):
        with pytest.raises(ModelError, match=f"the module is a {type(module).__name__} itself"):
            potq.quantize(module, PoTConfig("pot4"))
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet: its layer is lazy"):
        potq.quantize(nn.Sequential(nn.LazyLinear(4)), PoTConfig("pot4"))
    traced = torch.jit.trace(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1, 4))  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match="the module is TorchScript, which cannot be changed"):
        potq.quantize(traced, PoTConfig("pot4"))
    with pytest.raises(ModelError, match="nothing to quantize: the model has no linear or embedding weights"):
        potq.quantize(nn.Sequential(nn.ReLU()), PoTConfig("pot4"))
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"0\.weight has 1 NaN or infinite entries"):
        potq.quantize(model, PoTConfig("pot4"))
    assert not any(isinstance(module, PackedModule) for module in model.modules())


def test_a_quantized_module_does_not_train() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    potq.quantize(model, PoTConfig("pot4"))
    with pytest.raises(ModelError, match="does not train"):
        model.requires_grad_(True)
    assert isinstance(copy.deepcopy(model), nn.Sequential)
    with pytest.raises(ModelError, match="the model is quantized already"):
        potq.quantize(model, PoTConfig("pot4"))


def test_torchs_transformer_layers_read_packed_weights() -> None:
    """Their fast path calls no submodule, it takes the weights."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    input = torch.randn(2, 5, 32)
    with torch.no_grad():
        before = model(input)
        report = potq.quantize(model, PoTConfig("int8"))
        assert {entry.name for entry in report.modules} >= {"layers.0.self_attn.out_proj", "layers.1.linear2"}
        assert torch.allclose(model(input), before, atol=0.05)
