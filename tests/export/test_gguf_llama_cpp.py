"""llama.cpp loads the files and computes what the model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import potq
from potq.config import PoTConfig
from potq.export.gguf import tensors
from potq.export.gguf.write import export_gguf
from potq.kernels import set_activations

from .models import MODELS, tiny

llama_cpp = pytest.importorskip("xllamacpp")

TOP = 8
PROMPT = "the other cat sat on 1234 mats, can't you see?\n\n  so"


def logits_of(path: Path, prompt: str) -> tuple[int, dict[int, float]]:
    """llama.cpp's count of the prompt's tokens, and the log probabilities of the likeliest next ones.

    The next token is made an "a": it would say nothing if that were a part of a character.
    """
    settings = llama_cpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(path), 128, 1
    settings.n_gpu_layers, settings.verbosity, settings.cache_ram_mib = 0, -1, 0
    settings.cache_type_k = settings.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16
    for threads in (settings.cpuparams, settings.cpuparams_batch):
        threads.n_threads = 1
    request = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": TOP, "logit_bias": [["a", 100]]}
    answer = llama_cpp.Server(settings).handle_completions(request)
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return answer["usage"]["prompt_tokens"], {token["id"]: token["logprob"] for token in found}


def compare(model: Any, tokenizer: PreTrainedTokenizerFast, path: Path, tolerance: float) -> None:
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    expected = model(ids).logits[0, -1].log_softmax(-1)
    count, found = logits_of(path, PROMPT)
    assert count == ids.shape[1]
    assert len(found) == TOP
    for token, value in found.items():
        assert value == pytest.approx(float(expected[token]), abs=tolerance)
    assert max(found.values()) == pytest.approx(float(expected.max()), abs=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_in_floats(
    name: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every weight as float32 llama.cpp does not round activations, so names, order and settings show exactly."""
    model, path = tiny(name, vocab_size=260), tmp_path / "out.gguf"
    potq.quantize(model, PoTConfig("pot3"))
    set_activations(model, "float")
    monkeypatch.setattr(tensors, "GGML_TYPES", {})
    monkeypatch.setattr(tensors, "exact_floats", lambda values, name: values.float())
    export_gguf(model, path, byte_tokenizer)
    compare(model, byte_tokenizer, path, 2e-3 if "gpt2" in name else 2e-5)  # a table of float16 numbers is its gelu


@pytest.mark.parametrize("preset", ["mxpot", "pot3", "pot3nz", "pot4", "iq4nl"])
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_every_type_is_computed(name: str, preset: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, path = tiny(name, vocab_size=260), tmp_path / "out.gguf"
    potq.quantize(model, PoTConfig(preset, embedding=preset))
    set_activations(model, "float")
    export_gguf(model, path, byte_tokenizer, allow_8bit=True)
    compare(model, byte_tokenizer, path, 0.3)
