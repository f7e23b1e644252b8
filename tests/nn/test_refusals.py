"""Models that are refused wherever weights of theirs would be lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import potq
from potq.config import PoTConfig
from potq.errors import ModelError
from potq.evaluate.perplexity import perplexity
from potq.export.output import check_on_cpu
from potq.ptq.quantize import quantize


def test_a_model_with_an_adapter_is_refused(tiny_model: LlamaForCausalLM, packed_model: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    said = r"has an adapter \(.* of peft\); merge it into the float model first"
    for model in (peft.get_peft_model(tiny_model, config), tiny_model):  # the latter has its layers in it, too
        with pytest.raises(ModelError, match=said):
            quantize(model, PoTConfig("pot4"))
        with pytest.raises(ModelError, match=said):
            potq.qat.prepare(model, PoTConfig("pot4"))
    for model in (peft.get_peft_model(packed_model, config), packed_model):
        with pytest.raises(ModelError, match=said):
            model.dequantize()
        with pytest.raises(ModelError, match=said):
            potq.save(model, tmp_path / "out")
        with pytest.raises(ModelError, match=said):
            check_on_cpu(model)  # which every export calls


def test_a_model_that_is_not_in_memory_is_refused(tiny_folder: Path, packed_folder: Path, tmp_path: Path) -> None:
    batches = [torch.arange(32)[None]]
    uses: dict[str, Callable[[Any], object]] = {
        "fast": lambda model: quantize(model, PoTConfig("pot4")),
        "balanced": lambda model: quantize(model, PoTConfig("pot4", effort="balanced"), batches),
        "prepare": lambda model: potq.qat.prepare(model, PoTConfig("pot4")),
        "allocate": lambda model: potq.allocate(model, PoTConfig("pot4"), ["pot3", "pot4"], batches, budget=4.0),
        "text": lambda model: potq.load_calibration("self", model, window=16, windows=2),
    }
    packed_uses: dict[str, Callable[[Any], object]] = {
        "save": lambda model: potq.save(model, tmp_path / "out"),
        "save_pretrained": lambda model: model.save_pretrained(tmp_path / "out"),
        "floats": lambda model: model.dequantize(),
        "start": lambda model: potq.qat.prepare(potq.load(tiny_folder), start=model),
        "export": check_on_cpu,
    }
    for folder, each in ((tiny_folder, uses), (packed_folder, packed_uses)):
        for use in each.values():
            for away in (potq.load(folder).to("meta"), cpu_offload(potq.load(folder), execution_device="cpu")):
                with pytest.raises(
                    ModelError, match=r"^(model|lm_head)\.\S+ is not in memory: .* load it without a device map"
                ):
                    use(away)
    prepared = potq.load(tiny_folder)
    potq.qat.prepare(prepared, PoTConfig("pot4"))
    with pytest.raises(ModelError, match="is not in memory"):
        potq.qat.convert(prepared.to("meta"))


def test_text_for_other_models_than_causal_ones_is_refused() -> None:
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    t5, batches = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)), [torch.arange(16)[None]]
    said = "T5ForConditionalGeneration is an encoder-decoder, and token batches are for causal language models"
    for fields in ({"effort": "balanced"}, {"scale_method": "weighted"}, {"scale_method": "fisher"}):
        with pytest.raises(ModelError, match=said):
            quantize(t5, PoTConfig("pot4", group_size=16, **fields), batches)
    with pytest.raises(ModelError, match=said):
        potq.load_calibration("self", t5, window=16, windows=1)
    encoder = T5EncoderModel(T5Config(**sizes))
    assert quantize(encoder, PoTConfig("pot4", group_size=16, effort="balanced"), batches).modules
    with pytest.raises(ModelError, match="T5EncoderModel has no head that predicts tokens"):
        potq.allocate(T5EncoderModel(T5Config(**sizes)), PoTConfig("pot4", group_size=16), ["pot3"], batches)
    assert quantize(t5, PoTConfig("pot4", group_size=16)).modules


def test_token_batches_and_predictions_of_other_classes_are_refused_by_name() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    masked, batches = BertForMaskedLM(BertConfig(vocab_size=32, **sizes)).eval(), [torch.arange(16)[None]]
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes)).eval()
    said = "BertForMaskedLM does not predict the next token; this is for causal language models"
    for use in (
        lambda: perplexity(masked, torch.arange(16), window=8),
        lambda: potq.load_calibration("self", masked, window=8, windows=1),
        lambda: quantize(masked, PoTConfig("pot4", effort="best"), batches),
        lambda: quantize(masked, PoTConfig("pot4", scale_method="fisher"), batches),
    ):
        with pytest.raises(ModelError, match=said):
            use()
    with pytest.raises(
        ModelError, match=r"reads pixel_values, not token batches; give its inputs by name \(potq.load_inputs"
    ):
        quantize(vit, PoTConfig("pot4"), batches)
    assert quantize(masked, PoTConfig("pot4", effort="balanced"), batches).modules
