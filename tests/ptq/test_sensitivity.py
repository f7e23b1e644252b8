"""Weights of tokens: the loss's curvature at every layer, found lot by lot and block by block, and what they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from transformers import AutoModel, LlamaForCausalLM

import potq
from kinds_helpers import KINDS, small_model
from moe_helpers import moe
from potq.config import EFFORTS
from potq.errors import ConfigError, ModelError
from potq.nn.experts import stacks
from potq.ptq import sequential
from potq.ptq.blocks import Chain, HiddenStates, second_moments, text_chain
from potq.ptq.sensitivity import TokenWeights, _seed, drawn_gradient, token_weights
from potq.ptq.substitute import frozen


def batches() -> list[Tensor]:
    """Windows of two lengths."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 64, shape, generator=generator) for shape in ((2, 12), (3, 12), (1, 7))]


def found(model: Any, *, text: list[Tensor] | None = None, **options: Any) -> tuple[Chain, TokenWeights]:
    text = batches() if text is None else text
    chain = text_chain(model, text, torch.clone)
    with frozen(model):
        return chain, token_weights(model, chain, text, options.pop("names", linears(model, chain)), **options)


def linears(model: nn.Module, chain: Chain) -> list[str]:
    names = [name for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]
    return [name for name in names if name.startswith(tuple(f"{start}." for start in chain.names))]


def of_the_whole(model: Any, names: list[str]) -> TokenWeights:
    """The same by autograd through the whole model, window by window."""
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda module, args, output: outputs.__setitem__(name, output)

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    squares: dict[str, list[Tensor]] = {name: [] for name in names}
    for window in (window for batch in batches() for window in batch.split(1)):
        logits = model(window, use_cache=False).logits
        drawn = drawn_gradient(logits.detach(), _seed(window, 0))
        gradients = torch.autograd.grad(logits, [outputs[name] for name in names], drawn)
        for name, gradient in zip(names, gradients, strict=True):
            squares[name].append(gradient.flatten(0, -2).square().mean(-1))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(each) / torch.cat(each).mean() for name, each in squares.items()}


# ---- what they are


def test_a_drawn_gradient_has_the_covariance_of_drawn_labels() -> None:
    logits = torch.tensor([2.0, 0.5, -1.0, 0.0, -torch.inf])
    drawn = drawn_gradient(logits.expand(40_000, 5), seed=3).double()
    p = logits.softmax(-1).double()
    torch.testing.assert_close(drawn.mean(0), torch.zeros(5).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.t() @ drawn / len(drawn), p.diag() - p[:, None] * p, atol=0.01, rtol=0)
    assert torch.equal(drawn, drawn_gradient(logits.expand(40_000, 5), seed=3).double())
    assert not torch.equal(drawn, drawn_gradient(logits.expand(40_000, 5), seed=4).double())


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_squared_gradients_through_the_whole_model(kind: str) -> None:
    model = small_model(kind, "eager")
    chain, weights = found(model)
    assert sorted(weights) == sorted(linears(model, chain))
    expected = of_the_whole(model, list(weights))
    for name, each in weights.items():
        assert each.dtype == torch.float32
        torch.testing.assert_close(each, expected[name], rtol=1e-3, atol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_files_and_the_order_of_batches_change_nothing() -> None:
    model, text = small_model("llama"), batches()
    weights = found(model)[1]
    assert all(torch.equal(each, weights[name]) for name, each in found(model, cache_bytes=2000)[1].items())
    again = found(model, text=[*text[1:], text[0]])[1]  # who has a window, and when, does not matter to it
    for name, each in again.items():
        torch.testing.assert_close(each.roll(24), weights[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(found(model, seed=1)[1][name], weights[name])


def test_experts_are_left_out() -> None:
    model = moe("qwen3_moe", vocab_size=64)
    chain = text_chain(model, batches(), torch.clone)
    names = linears(model, chain)
    assert stacks(model)
    assert sorted(found(model, names=names)[1]) == sorted(names)
    block = model.model.layers[0]
    block.seldom = nn.Linear(32, 32)
    after = block.forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = after(hidden, *args, **kwargs)
        return torch.cat([output[:, :3] + block.seldom(output[:, :3]), output[:, 3:]], 1)

    block.forward = forward
    assert "model.layers.0.seldom" not in found(model, names=["model.layers.0.seldom"])[1]


def test_a_layer_that_the_loss_does_not_feel_has_none() -> None:
    model = small_model("llama")
    nn.init.zeros_(model.model.layers[1].mlp.down_proj.weight)
    weights = found(model)[1]
    assert "model.layers.1.mlp.up_proj" not in weights
    assert "model.layers.1.mlp.down_proj" in weights


def test_gradients_that_are_not_finite_are_named() -> None:
    model = small_model("llama")
    nn.init.constant_(model.lm_head.weight, torch.inf)
    with pytest.raises(ModelError, match=r"^model\.layers\.2\.\S+: its gradients on .* NaN or infinite; load the model in"):
        found(model)


# ---- what they change


@given(st.lists(st.floats(0, 100), min_size=31, max_size=31), st.booleans())
def test_weighted_moments(numbers: list[float], equal: bool) -> None:
    """Equal weights give the plain moments to the bit; others what their definition says."""
    torch.manual_seed(0)
    model, name = small_model("llama"), "mlp.down_proj"
    text = [torch.arange(3, 27).view(2, 12), torch.arange(7)[None]]
    chain, inputs = text_chain(model, text, torch.clone), list[Tensor]()
    block, states = chain.blocks[0], HiddenStates(chain.calls)
    weights = torch.ones(31) if equal else torch.tensor(numbers)
    handle = block.get_submodule(name).register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(0, -2)))
    (weighted,) = second_moments(block, [name], states, "a.", weights={f"a.{name}": weights, "a.other": weights})
    handle.remove()
    x = torch.cat(inputs).double()
    torch.testing.assert_close(weighted.double(), x.t() @ (weights[:, None] * x) / 31, rtol=1e-4, atol=1e-6)
    assert torch.equal(weighted, weighted.t())
    if equal:
        assert torch.equal(weighted, second_moments(block, [name], states, "a.")[0])


def test_they_are_kept_for_a_run_that_is_killed(
    tiny_model: LlamaForCausalLM, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = potq.PoTConfig("pot3", effort="balanced:weigh_tokens=true")

    def kill(done: int, total: int, name: str) -> None:
        if name.startswith("model.layers.1."):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        potq.quantize(tiny_model, config, [tokens], work_folder=tmp_path / "work", progress=kill)
    monkeypatch.setattr(sequential, "token_weights", None)
    potq.quantize(tiny_model, config, [tokens], work_folder=tmp_path / "work")


def test_what_predicts_no_tokens_is_refused(tiny_folder: Path, tokens: Tensor) -> None:
    config = potq.PoTConfig("pot3", effort="balanced:weigh_tokens=true")
    with pytest.raises(ModelError, match="LlamaModel"):
        potq.quantize(AutoModel.from_pretrained(tiny_folder), config, [tokens])
    with pytest.raises(ConfigError, match="'balanced:weigh_tokens=true' weighs tokens by the loss of a language model"):
        potq.quantize(nn.Sequential(nn.Linear(64, 64)), config, [torch.ones(2, 64)])


def test_they_matter(tiny_model: LlamaForCausalLM, tokens: Tensor, tiny_folder: Path) -> None:
    other = LlamaForCausalLM.from_pretrained(tiny_folder).eval()
    plain = EFFORTS["balanced"]
    potq.quantize(tiny_model, potq.PoTConfig("pot2", effort="balanced:weigh_tokens=true"), [tokens])
    potq.quantize(other, potq.PoTConfig("pot2", effort=plain), [tokens])
    name = "model.layers.0.mlp.up_proj.weight_packed"
    assert not torch.equal(tiny_model.state_dict()[name], other.state_dict()[name])
