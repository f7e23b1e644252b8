"""Multimodal models: what is quantized is the language model, unless more is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

import potq
from potq.config import PoTConfig
from potq.nn.language import language_plan
from potq.nn.packed_model import packed_modules
from potq.nn.weights import quantizable_modules
from potq.ptq.quantize import quantize

TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {"image_size": 28, "patch_size": 14}
CONFIG = PoTConfig("pot4", group_size=16)
IDS = torch.arange(1, 17)[None]


def gemma3() -> Any:
    config = Gemma3Config(
        text_config={**TEXT, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
        vision_config={**TOWER, **IMAGE},
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    )
    return Gemma3ForConditionalGeneration(config).eval()


def llava() -> Any:
    tower = CLIPVisionConfig(**{**TOWER, **IMAGE})
    config = LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=tower, image_token_index=60)
    return LlavaForConditionalGeneration(config).eval()


MODELS = {"gemma3": (gemma3, 15), "llava": (llava, 16)}  # with a tied head, and without


@pytest.mark.parametrize(("make", "count"), MODELS.values(), ids=MODELS)
def test_only_the_language_model_is_quantized(make: Any, count: int, tmp_path: Path) -> None:
    model = make()
    outside = {name for name in quantizable_modules(model) if "vision_tower" in name or "multi_modal_projector" in name}
    assert outside
    model.save_pretrained(tmp_path / "full")
    report = quantize(model, CONFIG)
    assert len(report.modules) == count
    assert not any(entry.name in outside for entry in report.modules)
    reasons = {skipped.name: skipped.reason for skipped in report.skipped}
    assert {reasons[name] for name in outside} == {"outside the language model; a pattern in targets asks for it"}
    streamed = AutoModelForImageTextToText.from_pretrained(tmp_path / "full", quantization_config=CONFIG)
    assert packed_modules(streamed).keys() == packed_modules(model).keys()
    assert {skipped.name for skipped in streamed.quant_report.skipped} == reasons.keys()
    for each in (model, streamed):
        each.save_pretrained(tmp_path / "packed")
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "packed")
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_potq_load_takes_a_multimodal_model_whole(tmp_path: Path) -> None:
    gemma3().save_pretrained(tmp_path)
    model = potq.load(tmp_path, CONFIG)
    assert isinstance(model, Gemma3ForConditionalGeneration)
    assert len(packed_modules(model)) == 16  # the tied head is one of them
    assert type(model.get_submodule("model.vision_tower.encoder.layers.0.mlp.fc1")) is nn.Linear


def test_other_paths_take_the_language_model_alone() -> None:
    batches = [IDS]
    model = llava()
    report = quantize(model, PoTConfig(scheme=CONFIG.scheme, effort="balanced"), batches)
    assert {entry.algorithm for entry in report.modules if entry.kind == "linear"} == {"gptq+descent"}
    model = llava()
    assert len(potq.qat.prepare(model, CONFIG).targets) == 16
    assert len(potq.qat.convert(model).modules) == 16
    chosen = potq.allocate(llava(), CONFIG, ["pot3:group_size=16", "pot4:group_size=16"], batches, budget=5.0)
    assert not any("vision" in pattern for pattern in chosen.targets)
    assert len(quantize(llava(), chosen).modules) == 16


def test_a_target_asks_for_more() -> None:
    everything = PoTConfig(scheme=CONFIG.scheme, targets={".*": CONFIG.scheme})
    assert len(quantize(llava(), everything).modules) == len(quantizable_modules(llava()))
    one = PoTConfig(scheme=CONFIG.scheme, targets={r"multi_modal_projector\.linear_1": "int8"})
    config, plan = language_plan(llava(), one)
    assert len(plan.targets) == 17
    assert set(config.ignore) == {r"model\.vision_tower\..*", r"model\.multi_modal_projector\.linear_2"}


def test_a_model_of_text_alone_is_planned_as_ever(tiny_model: Any) -> None:
    config, plan = language_plan(tiny_model, CONFIG)
    assert config == CONFIG
    assert not plan.skipped


def test_a_tower_that_was_packed_before_still_loads(tmp_path: Path) -> None:
    model = llava()
    quantize(model, PoTConfig(scheme=CONFIG.scheme, embedding=CONFIG.scheme, targets={".*": CONFIG.scheme}))
    model.config.quantization_config = PoTConfig(scheme=CONFIG.scheme, embedding=CONFIG.scheme)  # as 0.1 wrote it
    model.save_pretrained(tmp_path)
    assert packed_modules(AutoModelForImageTextToText.from_pretrained(tmp_path)).keys() == packed_modules(model).keys()


def test_a_towers_name_within_the_language_model_is_no_tower() -> None:
    """The encoder of images is called ``encoder``, and so is a part of the decoder of text."""
    tower, text = ViTConfig(**TOWER, **IMAGE), BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(tower, text))
    names = {name for target in language_plan(model, CONFIG)[1].targets for name in target.names}
    assert "decoder.bert.encoder.layer.1.output.dense" in names
    assert names == {name for name in quantizable_modules(model) if name.startswith("decoder.")}
