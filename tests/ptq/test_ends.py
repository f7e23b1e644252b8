"""Embedding and head: the second moments that the loss gives their rows, and what calibrating them is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import potq
from kinds_helpers import small_model
from potq.config import EFFORTS
from potq.evaluate.divergence import kl_divergence
from potq.nn.plan import WeightPlan, plan
from potq.ptq.ends import calibrated_ends, end_moments
from potq.ptq.sensitivity import _seed, drawn_gradient

KINDS = ("llama", "gemma3_text", "gpt2", "opt", "phi")


def windows(count: int = 3, length: int = 12) -> list[Tensor]:
    """No token twice in a window, and none that stands for padding."""
    generator = torch.Generator().manual_seed(5)
    return [3 + torch.randperm(61, generator=generator)[None, :length] for _ in range(count)]


def ends(model: Any, **config: Any) -> list[WeightPlan]:
    targets = plan(model, potq.PoTConfig("pot4", **{"embedding": "pot3", **config})).targets
    return calibrated_ends(model, targets, EFFORTS["balanced"])


def untied(kind: str) -> Any:
    """The model with a head of its own."""
    model = small_model(kind)
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight.detach().clone())
    return model


def of_the_whole(model: Any) -> tuple[Tensor, Tensor]:
    """Of the input embedding and of the head, by autograd through the whole model, window by window.

    Where a window has no token twice, the gradients of the embedding's weight are those of its tokens' rows.
    """
    entered: list[Tensor] = []
    head, table = model.get_output_embeddings(), model.get_input_embeddings().weight
    handle = head.register_forward_pre_hook(lambda module, args: entered.append(args[0].detach()[0]))
    rows, inputs = [], []
    for window in windows():
        logits = model(window, use_cache=False).logits
        drawn = drawn_gradient(logits.detach(), _seed(window, 0))
        (gradient,) = torch.autograd.grad(logits, table, drawn)
        rows.append(gradient[window[0]])
        inputs.append(entered.pop() * drawn[0].norm(dim=-1, keepdim=True))
    handle.remove()
    tokens = sum(window.numel() for window in windows())
    own, out = torch.cat(rows), torch.cat(inputs)
    return own.t() @ own / tokens, out.t() @ out / tokens


@pytest.mark.parametrize("kind", KINDS)
def test_second_moments_are_those_of_gradients_through_the_whole_model(kind: str) -> None:
    model = untied(kind)
    table, head = of_the_whole(model)
    names = {id(module): name for name, module in model.named_modules()}
    found = end_moments(model, ends(model), windows())
    torch.testing.assert_close(
        found[names[id(model.get_input_embeddings())]], table, rtol=1e-3, atol=1e-3 * float(table.max())
    )
    torch.testing.assert_close(
        found[names[id(model.get_output_embeddings())]], head, rtol=1e-3, atol=1e-3 * float(head.max())
    )


def test_a_weight_that_is_both_gets_the_sum() -> None:
    apart, tied = untied("llama"), small_model("llama")
    tied.lm_head.weight = tied.model.embed_tokens.weight
    apart.lm_head.weight = torch.nn.Parameter(tied.lm_head.weight.detach().clone())
    both = end_moments(apart, ends(apart), windows())
    (one,) = end_moments(tied, ends(tied), windows()).values()
    torch.testing.assert_close(one, both["model.embed_tokens"] + both["lm_head"])


def test_the_model_keeps_its_gradients_and_its_mode() -> None:
    model = small_model("llama").train()
    end_moments(model, ends(model), windows())
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_what_is_left_to_rounding() -> None:
    model = untied("llama")
    assert [target.name for target in ends(model)] == ["model.embed_tokens", "lm_head"]
    assert not ends(model, embedding="int8")  # loses nothing
    assert not ends(model, embedding="pot3:group_size=tensor")
    assert not calibrated_ends(model, ends(model), EFFORTS["fast"])
    assert not calibrated_ends(model, ends(model), EFFORTS["potptq"])


def test_calibrated_ends_diverge_less(tiny_model: Any, tokens: Tensor) -> None:
    batches = potq.load_calibration("self", tiny_model, window=64, windows=8)
    held_out = torch.cat(
        [batch.flatten() for batch in potq.load_calibration("self", tiny_model, window=64, windows=8, seed=1)]
    )
    means = {}
    for effort in ("fast", "balanced"):
        model = small_copy(tiny_model)
        config = potq.PoTConfig("pot3", embedding="pot3", ignore=[r"layers\..*"], effort=effort)
        report = potq.quantize(model, config, batches if effort == "balanced" else None)
        assert {entry.algorithm for entry in report.modules} == {"rtn/mse-exact" if effort == "fast" else "gptq+descent"}
        means[effort] = kl_divergence(model, tiny_model, held_out, window=64).mean
    assert means["balanced"] < 0.9 * means["fast"]


def small_copy(model: Any) -> Any:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def test_a_model_in_parts_gets_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    batches = potq.load_calibration("self", potq.load(tiny_folder), window=32, windows=4)
    config = potq.PoTConfig("pot3", embedding="pot3", effort="balanced")
    whole, parts = potq.load(tiny_folder), potq.load(tiny_folder, stream=True)
    potq.quantize(whole, config, batches)
    potq.quantize(parts, config, batches, work_folder=tmp_path / "work")
    for name, tensor in whole.model.embed_tokens.quantized.tensors().items():
        assert torch.equal(tensor, parts.model.embed_tokens.quantized.tensors()[name])
