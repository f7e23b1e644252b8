"""BERTScore of continuations: model, reference and text."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import potq
from evaluate_helpers import tiny_gpt2
from potq.errors import PotqError
from potq.evaluate.bertscore import continuation_score
from potq.evaluate.continuations import Prompts, continuations, prompts_of
from potq.evaluate.encoder import Encoder

pytest.importorskip("bert_score")
pytestmark = pytest.mark.usefixtures("one_thread")  # models so small only wait for threads


@pytest.fixture
def places() -> Prompts:
    generator = torch.Generator().manual_seed(2)
    return prompts_of(torch.randint(1, 260, (200,), generator=generator), 5, prompt_tokens=20, new_tokens=10)


def test_the_three_scores(tiny_folder: Path, packed_model: Any, tiny_model: Any, places: Prompts, encoder: Encoder) -> None:
    tokenizer = potq.load_tokenizer(tiny_folder)
    before = tokenizer.init_kwargs.copy(), tokenizer.padding_side, tokenizer.pad_token
    found = continuation_score(packed_model, tokenizer, places, encoder, reference=tiny_model, batch=3)

    def texts(rows: Any) -> list[str]:
        return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    own, full = (texts(continuations(model, places.prompts, new_tokens=10)) for model in (packed_model, tiny_model))
    true = texts(places.truths)
    assert found.reference_true is not None
    assert found.model_reference is not None
    for f1, pair in [
        (found.model_true, (own, true)),
        (found.reference_true, (full, true)),
        (found.model_reference, (own, full)),
    ]:
        assert f1.each == pytest.approx(encoder.f1(*pair), abs=1e-6)
        assert f1.mean == pytest.approx(sum(f1.each) / 5)
    assert (tokenizer.init_kwargs, tokenizer.padding_side, tokenizer.pad_token) == before


def test_a_model_agrees_with_itself(tiny_folder: Path, tiny_model: Any, places: Prompts, encoder: Encoder) -> None:
    tokenizer = potq.load_tokenizer(tiny_folder)
    found = continuation_score(tiny_model, tokenizer, places, encoder, reference=tiny_model)
    assert found.model_reference is not None
    assert found.model_reference.each == pytest.approx([1.0] * 5, abs=1e-5)
    assert found.model_true == found.reference_true


def test_a_reference_that_has_written(
    tiny_folder: Path, packed_model: Any, tiny_model: Any, places: Prompts, encoder: Encoder
) -> None:
    score = partial(continuation_score, packed_model, potq.load_tokenizer(tiny_folder), places, encoder)
    written = continuations(tiny_model, places.prompts, new_tokens=10)
    found, expected = score(reference=written), score(reference=tiny_model)
    assert found == replace(expected, seconds=found.seconds)
    with pytest.raises(PotqError, match="4 continuations to compare with, of 5 prompts; give one for each"):
        score(reference=written[:4])


def test_the_protocol_in_words(tiny_folder: Path, tiny_model: Any, places: Prompts, encoder: Encoder) -> None:
    found = continuation_score(tiny_model, potq.load_tokenizer(tiny_folder), places, encoder)
    assert found.library.startswith("bert-score 0.")
    assert found.protocol == (
        f"BERTScore F1 ({found.library}, layer 2 of {encoder.name}, not rescaled, no idf): "
        "5 evenly spaced prompts of 20 tokens, greedy continuations of up to 10"
    )
    fields = json.loads(json.dumps(found.to_dict()))
    assert fields["protocol"] == found.protocol
    assert fields["model_true"] == {"mean": found.model_true.mean, "each": list(found.model_true.each)}
    assert (fields["reference_true"], fields["model_reference"]) == (None, None)
    assert (fields["encoder"], fields["layer"]) == (encoder.name, 2)


def test_a_reference_of_another_vocabulary(tiny_folder: Path, tiny_model: Any, places: Prompts, encoder: Encoder) -> None:
    other = tiny_gpt2()
    other.config.vocab_size = 50257
    with pytest.raises(
        PotqError, match="a vocabulary of 50257 tokens, the model of 260; compare with the model it was made"
    ):
        continuation_score(tiny_model, potq.load_tokenizer(tiny_folder), places, encoder, reference=other)
