"""Fixtures of quantization-aware training."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import potq
from potq.qat.recipe import TrainRecipe

pytest.register_assert_rewrite("qat_helpers")
from qat_helpers import make_recipe  # noqa: E402  # pytest is to rewrite it


@pytest.fixture(autouse=True, scope="session")
def quick_collection() -> Iterator[None]:
    """The Trainer collects garbage whenever it starts: a third of a tiny run, if it must look at all of torch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quick_steps(one_thread: None) -> None:
    """All of them train."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Fifteen sequences of 16 tokens."""
    file = tmp_path / "text.txt"
    file.write_text("the cat sat on the mat, then the other cat. " * 8)
    return file


@pytest.fixture(scope="session")
def gpt2_folder(_tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 with dropout everywhere: Conv1D linears, biases, a table of positions, a tied head."""
    fields = {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**fields, embd_pdrop=0.2, resid_pdrop=0.2, attn_pdrop=0.2))
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    model.save_pretrained(folder)
    potq.load_tokenizer(_tiny_source).save_pretrained(folder)
    return folder


@pytest.fixture
def make(tiny_folder: Path, text: Path, tmp_path: Path) -> Callable[..., TrainRecipe]:
    """Recipes for the tiny Llama, or another ``model``, by name of their output."""

    def make(name: str = "out", model: Path = tiny_folder, **changes: Any) -> TrainRecipe:
        return make_recipe(model, tmp_path / name, text, **changes)

    return make
