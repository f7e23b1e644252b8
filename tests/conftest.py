"""Shared fixtures: a tiny trained Llama with its tokenizer, and a packed checkpoint of it. Nothing touches the network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import potq
from potq.kernels import registry

# the same examples every time; `make check-deep` draws many more, and new ones
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis.settings.register_profile("deep", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

VOCAB = 260
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So small a model only waits for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: the 256 bytes, an end token, three merges."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    inner.train_from_iterator(["the cat sat on the mat, then the other cat"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """A tiny Llama, trained a little on sequences that a rule makes, so that its weights are not pure noise."""
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**(fields | changes)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for threads
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        start, step = torch.randint(VOCAB, (8, 1), generator=generator), torch.randint(1, 5, (8, 1), generator=generator)
        batch = (start + step * torch.arange(32)) % VOCAB
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration in float32 on every CPU; what tests mixed precision asks for it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


@pytest.fixture
def reference_backend() -> Iterator[None]:
    """Packed modules made in the test compute with the torch reference, whose products are exact."""
    before = dict(registry.BACKENDS)
    del registry.BACKENDS["cpu"]
    registry.choose.cache_clear()
    yield
    registry.BACKENDS.clear()
    registry.BACKENDS.update(before)  # in their order
    registry.choose.cache_clear()


@pytest.fixture
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny models' tokenizer, which has a token for every byte."""
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def _tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _packed_source(_tiny_source: Path) -> Path:
    folder = _tiny_source.with_name("packed")
    potq.save(potq.load(_tiny_source, potq.PoTConfig("pot4")), folder, potq.load_tokenizer(_tiny_source))
    return folder


@pytest.fixture(scope="session")
def chat_folder(_packed_source: Path) -> Path:
    """The packed model, made to chat, with a context for it; for tests that change nothing of it."""
    target = shutil.copytree(_packed_source, _packed_source.with_name("tiny-pot4"))
    for name, more in (
        ("tokenizer_config.json", {"chat_template": CHAT}),
        ("config.json", {"max_position_embeddings": 1024}),
    ):
        file = target / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
    return target


@pytest.fixture
def tiny_folder(_tiny_source: Path, tmp_path: Path) -> Path:
    """A full-precision model folder, float32; this test's own copy."""
    return shutil.copytree(_tiny_source, tmp_path / "tiny")


@pytest.fixture
def packed_folder(_packed_source: Path, tmp_path: Path) -> Path:
    """The same model as a pot4 checkpoint; this test's own copy."""
    return shutil.copytree(_packed_source, tmp_path / "packed")


@pytest.fixture
def tiny_model(_tiny_source: Path) -> LlamaForCausalLM:
    """The full-precision model, freshly loaded."""
    return LlamaForCausalLM.from_pretrained(_tiny_source).eval()


@pytest.fixture
def packed_model(_packed_source: Path) -> Any:
    """The packed model, freshly loaded."""
    return potq.load(_packed_source)


@pytest.fixture
def tokens() -> torch.Tensor:
    """A batch of token ids ``(2, 24)``."""
    return (torch.tensor([[3], [90]]) + torch.tensor([[1], [3]]) * torch.arange(24)) % VOCAB


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real texts and models."""
    if "POTQ_DATA" not in os.environ:
        pytest.skip("set POTQ_DATA to the folder of texts and models")
    return Path(os.environ["POTQ_DATA"])
