"""``potq eval --bertscore`` end to end, on a tiny model and a tiny encoder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import BertConfig, BertModel

import potq
from cli_helpers import refused, succeed
from potq.data.tokens import tokenize
from potq.errors import CheckpointError, ConfigError, DataError, MissingDependencyError
from potq.evaluate.bertscore import continuation_score
from potq.evaluate.continuations import prompts_of
from potq.evaluate.encoder import load_encoder
from potq.kernels import set_activations

pytest.importorskip("bert_score")

FEW = ["--window", "64", "--prompts", "2", "--new-tokens", "8"]


@pytest.fixture
def encoder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A random BERT over the tiny model's own tokens; the end token stands at either end, and for padding."""
    folder = tmp_path / "encoder"
    tokenizer = potq.load_tokenizer(tiny_folder)
    end = ("<|end|>", tokenizer.convert_tokens_to_ids("<|end|>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[end]
    )
    tokenizer.pad_token = tokenizer.cls_token = tokenizer.sep_token = end[0]
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=260, initializer_range=0.2, **sizes)).save_pretrained(folder)
    return folder


def test_json(packed_folder: Path, tiny_folder: Path, text: Path, encoder: Path) -> None:
    words: list[str | Path] = ["eval", packed_folder, "--text", text, *FEW]
    found = json.loads(succeed(*words, "--bertscore", encoder, "--reference", tiny_folder, "--layer", "1", "--json"))
    plain = json.loads(succeed(*words[:4], *FEW[:2], "--json"))
    assert found["window_nll"] == plain["window_nll"]
    assert "bertscore" not in plain
    model, tokenizer = potq.load(packed_folder), potq.load_tokenizer(packed_folder)
    set_activations(model, "float")
    places = prompts_of(tokenize(tokenizer, text.read_text()), 2, new_tokens=8)
    expected = continuation_score(model, tokenizer, places, load_encoder(encoder, 1), reference=potq.load(tiny_folder))
    for key in ("model_true", "reference_true", "model_reference"):
        assert found["bertscore"][key]["each"] == pytest.approx(expected.to_dict()[key]["each"], abs=1e-5)
    assert found["bertscore"]["protocol"] == expected.protocol


def test_words(packed_folder: Path, tiny_folder: Path, text: Path, encoder: Path) -> None:
    words: list[str | Path] = ["eval", packed_folder, "--text", text, *FEW, "--bertscore", encoder]
    out = succeed(*words)
    assert out.startswith("perplexity ")
    assert "of the model's continuations with the text's own" in out
    assert "reference" not in out
    assert "2 evenly spaced prompts of 64 tokens" in " ".join(out.split())
    out = succeed(*words, "--reference", tiny_folder)
    assert "of the reference's with the text's own" in out
    assert "of the model's with the reference's" in out


@pytest.mark.parametrize("words", [["--reference", "smollm2"], ["--layer", "2"]])
def test_options_without_an_encoder(packed_folder: Path, words: list[str]) -> None:
    assert "pass --bertscore ENCODER too" in refused(ConfigError, "eval", packed_folder, "--text", "pydoc", *words)


def test_what_is_missing_shows_before_anything_is_measured(
    packed_folder: Path, text: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potq.evaluate.perplexity.perplexity", None)
    words: list[str | Path] = ["eval", packed_folder, "--text", text, "--bertscore"]
    assert "does not exist" in refused(CheckpointError, *words, tmp_path / "none", *FEW)
    assert "does not exist" in refused(CheckpointError, *words, encoder, *FEW, "--reference", tmp_path / "none")
    assert "not for 99" in refused(DataError, *words, encoder, "--prompts", "99")
    assert "has no layer 3" in refused(ConfigError, *words, encoder, *FEW, "--layer", "3")
    monkeypatch.setitem(sys.modules, "bert_score.utils", None)
    assert "pip install 'potq[bertscore]'" in refused(MissingDependencyError, *words, encoder, *FEW)
