"""What prepares a model's inputs, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest

import class_models
import potq
from potq.checkpoint.processors import processor_files
from potq.errors import CheckpointError, MissingDependencyError


def test_a_processor_is_that_of_what_the_class_reads(tmp_path: Path, tiny_folder: Path) -> None:
    vit = class_models.save("ViTForImageClassification", tmp_path / "vit")
    whisper = class_models.save("WhisperForConditionalGeneration", tmp_path / "whisper")
    assert type(potq.load_processor(vit)).__name__.startswith("ViTImageProcessor")
    assert type(potq.load_processor(whisper)).__name__ == "WhisperFeatureExtractor"
    assert potq.load_processor(whisper, model_class="WhisperForCausalLM")("the")["input_ids"]
    assert potq.load_processor(tiny_folder)("the")["input_ids"]
    assert [file.name for file in processor_files(vit)] == ["preprocessor_config.json"]
    assert processor_files(tiny_folder) == []


def test_a_processor_that_is_missing_damaged_or_needs_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = class_models.save("ViTForImageClassification", tmp_path / "vit")

    def lacking(*_: object, **__: object) -> None:
        raise ImportError("AutoImageProcessor requires the torchvision library\n\nand more words")

    with monkeypatch.context() as patched:
        patched.setattr("transformers.AutoImageProcessor.from_pretrained", lacking)
        with pytest.raises(MissingDependencyError, match=r"what prepares images for .* needs more: .* torchvision library$"):
            potq.load_processor(folder)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vit: what prepares its images cannot be read \("):
        potq.load_processor(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vit has no preprocessor_config\.json, which says how images are prepared"):
        potq.load_processor(folder)


def test_files_of_a_processor_are_saved_beside_the_model(tmp_path: Path) -> None:
    folder = class_models.save("ViTForImageClassification", tmp_path / "vit")
    potq.save(potq.load(folder, potq.PoTConfig("pot4")), tmp_path / "out", files=processor_files(folder))
    assert (tmp_path / "out" / "preprocessor_config.json").read_bytes() == (folder / "preprocessor_config.json").read_bytes()
