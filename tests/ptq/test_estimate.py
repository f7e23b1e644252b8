"""Estimates: what they count, by hand on a tiny model, and how they grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import potq
from potq.config import EFFORTS, Effort
from potq.errors import ModelError
from potq.ptq import estimate as module
from potq.ptq.estimate import Estimate, estimate

SPEED = 1e9


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_speed", lambda device: SPEED)


def test_operations_of_gptq(tiny_model: LlamaForCausalLM) -> None:
    """Two blocks of q, k, v (64, 32, 32 outputs of 64 inputs), o (64 of 64), gate and up (160 of 64), down (64 of 160)."""
    tokens, seconds = 1000, estimate(tiny_model, EFFORTS["gptq"], 1000).seconds
    weights = [64 * 128, 64 * 64, 64 * 320, 160 * 64]
    before = 3 * weights[0] + 2 * weights[1] + weights[2]
    text = tokens * (2 * (sum(weights) + before) + 3 * 2 * 64**2 + 2 * 160**2)
    layers = 2000 * sum(weights) + 4 * (6 * 64**3 + 160**3) + 2 * ((128 + 64 + 320) * 64**2 + 64 * 160**2)
    assert seconds == pytest.approx(2 * (text + layers) / SPEED)


def test_refinement_of_the_model_is_eight_operations_a_parameter_and_token(tiny_model: LlamaForCausalLM) -> None:
    plain, refined = Effort(compensate=True), Effort(compensate=True, scope="model", epochs=3)
    parameters = sum(parameter.numel() for parameter in tiny_model.parameters())
    difference = estimate(tiny_model, refined, 500).seconds - estimate(tiny_model, plain, 500).seconds
    assert difference == pytest.approx(3 * 500 * 8 * parameters / SPEED)
    linears = 2 * (64 * 128 + 64 * 64 + 64 * 320 + 160 * 64)
    assert estimate(tiny_model, refined, 500).bytes - estimate(tiny_model, plain, 500).bytes > 16 * linears


@pytest.mark.parametrize("name", ["gptq", "balanced", "best", "potptq"])
def test_more_text_takes_longer_and_more_memory(tiny_model: LlamaForCausalLM, name: str) -> None:
    less, more = (estimate(tiny_model, EFFORTS[name], tokens) for tokens in (1000, 100_000))
    assert less.seconds < more.seconds < 100 * less.seconds
    assert less.bytes < more.bytes


def test_efforts_in_their_order(tiny_model: LlamaForCausalLM) -> None:
    seconds = [estimate(tiny_model, EFFORTS[name], 10_000).seconds for name in ("fast", "gptq", "balanced", "best")]
    assert seconds[0] == 0
    assert seconds == sorted(seconds)


def test_a_config_counts_what_it_quantizes(tiny_model: LlamaForCausalLM) -> None:
    whole = estimate(tiny_model, potq.PoTConfig("pot4"), 1000)
    assert whole == estimate(tiny_model, EFFORTS["balanced"], 1000)
    part = estimate(tiny_model, potq.PoTConfig("pot4", ignore=["mlp.*"]), 1000)
    assert part.seconds < whole.seconds
    assert estimate(tiny_model, potq.PoTConfig("pot4", ignore=[r"layers\..*"]), 1000).seconds == 0


def test_the_model_is_left_alone(tiny_model: LlamaForCausalLM, tokens: Tensor) -> None:
    tiny_model.train()
    state = torch.random.get_rng_state()
    estimate(tiny_model, EFFORTS["best"], 1000)
    assert tiny_model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(layer._forward_pre_hooks for layer in tiny_model.modules())


def test_gpt2() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    assert estimate(model, EFFORTS["balanced"], 1000).seconds > 0


def test_a_model_without_blocks() -> None:
    with pytest.raises(ModelError, match="no list of blocks"):
        estimate(nn.Linear(2, 2), EFFORTS["gptq"], 10)


@pytest.mark.parametrize(
    ("seconds", "size", "words"),
    [
        (0.2, 1_440_000_000, "about 1 s, 1.4 GB"),
        (89, 60_000_000, "about 89 s, 0.1 GB"),
        (170, 10**9, "about 3 min, 1.0 GB"),
        (9000, 2 * 10**10, "about 2.5 h, 20.0 GB"),
    ],
)
def test_in_words(seconds: float, size: int, words: str) -> None:
    assert str(Estimate(seconds, size)) == words


def test_the_speed_is_measured(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> None:
    monkeypatch.undo()
    assert 1e8 < module._speed(torch.device("cpu")) < 1e15
