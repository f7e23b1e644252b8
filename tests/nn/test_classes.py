"""What classes of transformers read and predict."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from potq.nn.classes import answers, family_names, has_decoder, is_base, predicts_next, reads, reads_both

# class: what it reads, whether it predicts the next token, has a decoder of its own, answers a text
CLASSES: dict[str, tuple[str | None, bool, bool, bool]] = {
    "LlamaForCausalLM": ("text", True, False, False),
    "GPT2LMHeadModel": ("text", True, False, False),
    "LlavaForConditionalGeneration": ("text", True, False, False),
    "Qwen2VLForConditionalGeneration": ("text", True, False, False),
    "Gemma3ForConditionalGeneration": ("text", True, False, False),
    "Mistral3ForConditionalGeneration": ("text", True, False, False),
    "LlamaModel": ("text", False, False, False),
    "LlamaForSequenceClassification": ("text", False, False, False),
    "BertModel": ("text", False, False, False),
    "BertForMaskedLM": ("text", False, False, False),
    "T5EncoderModel": ("text", False, False, False),
    "T5Model": ("text", False, True, False),
    "T5ForConditionalGeneration": ("text", False, True, True),
    "BartForConditionalGeneration": ("text", False, True, True),
    "BartForSequenceClassification": ("text", False, True, False),
    "WhisperForConditionalGeneration": ("audio", False, True, False),
    "WhisperForAudioClassification": ("audio", False, False, False),
    "Wav2Vec2ForCTC": ("audio", False, False, False),
    "ViTForImageClassification": ("images", False, False, False),
    "VisionEncoderDecoderModel": ("images", False, True, False),
    "BlipForConditionalGeneration": ("images", False, False, False),
    "PatchTSTForPrediction": (None, False, False, False),
}


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_class_reads_and_predicts(name: str) -> None:
    kind: Any = getattr(transformers, name)
    assert (reads(kind), predicts_next(kind), has_decoder(kind), answers(kind)) == CLASSES[name]


def test_two_towers_read_both() -> None:
    both = {"CLIPModel", "BlipForConditionalGeneration", "LlavaForConditionalGeneration"}
    assert {name for name in [*CLASSES, "CLIPModel"] if reads_both(getattr(transformers, name))} >= both
    assert not any(
        reads_both(getattr(transformers, name)) for name in CLASSES if name.startswith(("Bert", "T5", "ViT", "Whi"))
    )


def test_code_of_a_users_own_counts_as_a_language_model() -> None:
    class Own(transformers.BertModel):
        pass

    assert predicts_next(Own)


def test_families_are_those_of_the_auto_classes() -> None:
    assert {"BertModel", "BertForMaskedLM", "BertLMHeadModel", "BertForSequenceClassification"} <= {*family_names("bert")}
    assert family_names("no-such-type") == []
    assert is_base(transformers.BartModel)
    assert not is_base(transformers.BartForConditionalGeneration)
