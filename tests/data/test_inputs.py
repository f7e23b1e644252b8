"""Inputs by name, for models that are no causal language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import class_models
import potq
from potq.data.inputs import check_inputs
from potq.errors import ConfigError, DataError, ModelError

WORDS = "the cat sat on the mat and the other cat sat beside it " * 20


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(WORDS)
    return tmp_path / "text.txt"


def made(name: str) -> Any:
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, name)(class_models.CONFIGS[name]()).eval()
    return model


def test_text_stands_between_the_tokens_of_a_tokenizer(text: Path) -> None:
    tokenizer = class_models.tokenizer()
    inputs = potq.load_inputs(text, made("BertModel"), tokenizer, window=20, count=5)
    assert [sorted(each) for each in inputs] == [["attention_mask", "input_ids"]] * 5
    for each in inputs:
        ids = each["input_ids"]
        assert (ids.shape, ids[0, 0], ids[0, -1]) == ((1, 20), 1, 2)
        assert not {1, 2} & {*ids[0, 1:-1].tolist()}
        assert tokenizer.decode(ids[0, 1:-1]) in WORDS
        assert each["attention_mask"].all()
    again = potq.load_inputs(text, made("BertModel"), tokenizer, window=20, count=5)
    other = potq.load_inputs(text, made("BertModel"), tokenizer, window=20, count=5, seed=1)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(inputs, again, strict=True))
    assert not all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(inputs, other, strict=True))


def test_documents_are_tokenized_without_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text('{"text": "a cat"}\n' * 40)
    inputs = potq.load_inputs(tmp_path / "many.jsonl", made("BertModel"), class_models.tokenizer(), window=20, count=2)
    assert all((each["input_ids"][0, 1:-1] > 3).all() for each in inputs)


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_a_decoder_continues_the_encoders_text(name: str, text: Path) -> None:
    tokenizer, model = class_models.tokenizer(), made(name)
    for each in potq.load_inputs(text, model, tokenizer, window=16, count=3):
        encoder, decoder = each["input_ids"][0], each["decoder_input_ids"][0]
        assert (len(encoder), len(decoder), decoder[0]) == (16, 16, model.config.decoder_start_token_id)
        assert tokenizer.decode(torch.cat([encoder[1:-1], decoder[1:]])) in WORDS


def test_a_classifier_of_both_shifts_the_text_itself(text: Path) -> None:
    inputs = potq.load_inputs(text, made("BartForSequenceClassification"), class_models.tokenizer(), window=16, count=2)
    assert all("decoder_input_ids" not in each for each in inputs)
    assert potq.load_inputs(text, made("T5EncoderModel"), class_models.tokenizer(), window=16, count=2)


def test_images_are_prepared_and_cast(tmp_path: Path) -> None:
    folder = class_models.save("ViTForImageClassification", tmp_path / "vit")
    images = class_models.images(tmp_path / "images", 5)
    processor = potq.load_processor(folder)
    inputs = potq.load_inputs(images, potq.load(folder, dtype="bfloat16"), processor, count=9)
    assert [(sorted(each), each["pixel_values"].shape) for each in inputs] == [(["pixel_values"], (1, 3, 16, 16))] * 5
    assert {each["pixel_values"].dtype for each in inputs} == {torch.bfloat16}
    model = potq.load(folder)
    every, some = potq.load_inputs(images, model, processor), potq.load_inputs(images, model, processor, count=2, seed=3)
    places = [next(i for i, a in enumerate(every) if torch.equal(a["pixel_values"], b["pixel_values"])) for b in some]
    assert places == sorted(places)
    assert len({*places}) == 2


def test_a_decoder_behind_sound_reads_what_the_model_writes(tmp_path: Path) -> None:
    folder = class_models.save("WhisperForConditionalGeneration", tmp_path / "whisper")
    model = potq.load(folder)
    model.generation_config.eos_token_id = None  # a random model may end at once
    state = torch.get_rng_state()
    inputs = potq.load_inputs(class_models.recordings(tmp_path / "audio"), model, potq.load_processor(folder))
    assert torch.equal(torch.get_rng_state(), state)
    for each in inputs:
        ids = each["decoder_input_ids"]
        assert each["input_features"].shape == (1, 8, 100)
        assert (ids.shape, ids[0, 0]) == ((1, 49), 2)
        with torch.no_grad():
            found = model(**each).logits[0].argmax(-1)
        assert torch.equal(found[:-1], ids[0, 1:])  # greedily


def test_what_cannot_be_made(text: Path, tiny_model: Any, tmp_path: Path) -> None:
    tokenizer, bert, vit = class_models.tokenizer(), made("BertModel"), made("ViTForImageClassification")
    with pytest.raises(ModelError, match=r"LlamaForCausalLM predicts the next token; potq\.load_calibration makes"):
        potq.load_inputs(text, tiny_model, tokenizer)
    with pytest.raises(ConfigError, match="invalid number of calibration inputs 0"):
        potq.load_inputs(text, bert, tokenizer, count=0)
    with pytest.raises(DataError, match=r"text\.txt: the calibration text has \d+ tokens, less than one window"):
        potq.load_inputs(text, made("T5ForConditionalGeneration"), tokenizer, window=5000)
    with pytest.raises(DataError, match="windows of 65 tokens exceed the model's limit of 64"):
        potq.load_inputs(text, bert, tokenizer, window=65)
    with pytest.raises(DataError, match="is no folder here; the model takes images"):
        potq.load_inputs(text, vit, None)
    images = class_models.images(tmp_path / "images", 2)
    with pytest.raises(DataError, match=r"1\.png cannot be prepared for the model \(TypeError: .*\); take it out"):
        potq.load_inputs(images, vit, lambda **_: 3)
    wide = class_models.tokenizer()
    wide.add_tokens([f"<{number}>" for number in range(9)])
    (tmp_path / "wide.txt").write_text("<8> " * 99)
    with pytest.raises(DataError, match=r"the model knows 0\.\.263; use its own tokenizer"):
        potq.load_inputs(tmp_path / "wide.txt", bert, wide, window=8)


def test_what_a_model_of_two_inputs_or_of_others_is_told() -> None:
    import transformers

    with pytest.raises(
        ModelError, match=r"CLIPModel reads more than one kind of input; give potq\.quantize its inputs in Python"
    ):
        check_inputs("pydoc", transformers.CLIPModel)
    with pytest.raises(ModelError, match="PatchTSTForPrediction reads past_values, which is no text, image or recording"):
        check_inputs("pydoc", transformers.PatchTSTForPrediction)
