"""Models of transformers calibrated with inputs by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import class_models
import potq
from potq.config import PoTConfig
from potq.errors import ConfigError, DataError
from potq.nn.packed_model import packed_modules

NAMES = ["BertForMaskedLM", "T5ForConditionalGeneration", "WhisperForConditionalGeneration", "ViTForImageClassification"]


def _inputs(name: str, model: Any, folder: Path) -> list[dict[str, torch.Tensor]]:
    processor = potq.load_processor(folder)
    if name.startswith("ViT"):
        return potq.load_inputs(class_models.images(folder / "images", 16), model, processor)
    if name.startswith("Whisper"):
        return potq.load_inputs(class_models.recordings(folder / "sound", 4), model, processor)
    (folder / "text.txt").write_text("The cat sat on the mat; zwölf Boxkämpfer jagten ihn. " * 20)
    return potq.load_inputs(folder / "text.txt", model, processor, window=24, count=16)


def _error(model: Any, inputs: list[dict[str, torch.Tensor]], config: PoTConfig) -> float:
    packed = copy.deepcopy(model)
    potq.quantize(packed, config, inputs if config.has_calibrated_effort else None)
    potq.kernels.set_activations(packed, "float")
    with torch.no_grad():
        return sum(float((packed(**each).logits - model(**each).logits).square().mean()) for each in inputs)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_calibrated_is_better_than_fast(name: str, tmp_path: Path) -> None:
    model = potq.load(class_models.save(name, tmp_path))
    inputs = _inputs(name, model, tmp_path)
    fast, gptq, balanced = (
        _error(model, inputs, PoTConfig("pot3", group_size=16, effort=effort)) for effort in ("fast", "gptq", "balanced")
    )
    assert gptq < 0.8 * fast
    assert balanced < 0.6 * fast


def test_inputs_by_name_that_do_not_run(tmp_path: Path) -> None:
    model = potq.load(class_models.save("BertForMaskedLM", tmp_path))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(8)[None]
    for calibration, kind, said in (
        ([{"input_ids": ids}, {"input_idz": ids}], DataError, r"does not run on calibration input 1 \(of shapes \(1, 8\)\)"),
        (
            [{"input_ids": ids}, "text"],
            DataError,
            "calibration input 1 is str; each is a tensor, a tuple of arguments, or a",
        ),
        (lambda model: None, DataError, "the calibration callable never ran the module"),
    ):
        with pytest.raises(kind, match=said):
            potq.quantize(model, PoTConfig("pot4"), calibration)
    for effort in ("best", "potptq"):
        with pytest.raises(
            ConfigError, match=f"effort='{effort}' refines what a language model predicts, .*; use 'balanced'"
        ):
            potq.quantize(model, PoTConfig("pot4", effort=effort), [{"input_ids": ids}])
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


def test_a_packed_folder_serves_its_base_too(tmp_path: Path) -> None:
    folder = class_models.save("BertForSequenceClassification", tmp_path / "full")
    potq.save(potq.load(folder, PoTConfig("pot4")), tmp_path / "packed")
    whole, base = potq.load(tmp_path / "packed"), potq.load(tmp_path / "packed", model_class="BertModel")
    ids = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        assert torch.equal(base(**ids).pooler_output, whole.bert(**ids).pooler_output)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_modules_that_transformers_keeps_in_float32_hold_codes(dtype: str, tmp_path: Path) -> None:
    folder = class_models.save("T5EncoderModel", tmp_path / "full")
    potq.save(potq.load(folder, PoTConfig("pot4")), tmp_path / "packed")
    model, exact = potq.load(tmp_path / "packed", dtype=dtype), potq.load(tmp_path / "packed")
    for name, module in packed_modules(model).items():
        assert torch.equal(module.quantized.dequantize(), packed_modules(exact)[name].quantized.dequantize())
    found, expected = (class_models.output(each, "T5EncoderModel").float() for each in (model, exact))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
