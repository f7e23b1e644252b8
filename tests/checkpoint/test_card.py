"""Model cards: what they say, where from, and whose are kept."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import PreTrainedTokenizerFast

import potq
from potq.checkpoint.card import _MARK, write_card
from potq.errors import CheckpointError
from potq.export.compressed_tensors import export_compressed_tensors
from potq.export.gguf.write import export_gguf

MARKED = f"{_MARK}\n\n# a\nours\n"
OWN = "---\nlicense: mit\nbase_model: some/parent\n---\nMy own words.\n"


def card(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def quantized(model: Any, source: str = "", scheme: str = "mxpot") -> Any:
    model.config.name_or_path = source
    potq.quantize(model, potq.PoTConfig(scheme))
    return model


def test_a_checkpoint_says_what_it_is(tiny_model: Any, tmp_path: Path) -> None:
    potq.save(quantized(tiny_model, "some/model", "pot3"), tmp_path / "out")
    found = card(tmp_path / "out")
    data = found.data.to_dict()
    assert (data["base_model"], data["library_name"], data["pipeline_tag"]) == ("some/model", "potq", "text-generation")
    assert "license" not in data
    assert "# out\n" in found.text
    assert "| pot3-g64 | packed | 14 |" in found.text
    assert "| int8-g64 | packed | 1 | 16,640 | 8.25 |" in found.text
    assert "| not quantized | float32 | 5 | 320 | 32 |" in found.text
    assert 'potq.load("out")' in found.text
    assert "comes without a tokenizer" in found.text
    assert "load_tokenizer" not in found.text
    report = tiny_model.quant_report
    whole, part = f"{report.bits_per_weight:.4g}", f"{report.quantized_bits_per_weight:.4g}"
    assert f"MB, {whole} bits per weight of the whole model, {part} per quantized weight." in found.text
    assert f"| all |  | 20 | {report.weights:,} | {whole} |" in found.text


def test_how_to_use_a_checkpoint_with_its_tokenizer(packed_folder: Path) -> None:
    text = card(packed_folder).text
    assert 'potq.load("packed"), potq.load_tokenizer("packed")' in text
    assert "without a tokenizer" not in text


def test_a_source_in_a_folder_gives_its_licence(tiny_folder: Path, tmp_path: Path) -> None:
    (tiny_folder / "README.md").write_text(OWN)
    potq.save(potq.load(tiny_folder, potq.PoTConfig("pot3")), tmp_path / "out")
    data = card(tmp_path / "out").data.to_dict()
    assert data["license"] == "mit"
    assert "base_model" not in data  # the folder's parent is not ours, and the folder's name says nothing to others


@pytest.mark.parametrize("text", ["---\n: [\n---\n", "no metadata", "---\n- a list\n---\n", "\xff"])
def test_a_source_with_a_strange_card(text: str, tiny_folder: Path, tmp_path: Path) -> None:
    (tiny_folder / "README.md").write_text(text, encoding="latin-1")
    potq.save(potq.load(tiny_folder, potq.PoTConfig("pot3")), tmp_path / "out")
    assert "license" not in card(tmp_path / "out").data.to_dict()


def test_exports_inherit_what_the_checkpoint_knows(
    tiny_model: Any, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    potq.save(quantized(tiny_model, "some/model"), tmp_path / "packed")
    model = potq.load(tmp_path / "packed")
    export_compressed_tensors(model, tmp_path / "ct", byte_tokenizer)
    export_gguf(model, tmp_path / "gguf" / "out.gguf", byte_tokenizer)
    for folder, form, bits in (("ct", "mxfp4-pack-quantized", "4.25"), ("gguf", "MXFP4", "4.25")):
        found = card(tmp_path / folder)
        assert found.data.to_dict()["base_model"] == "some/model"
        assert f"| mxpot-g32-e8m0 | {form} | 14 | 86,016 | {bits} |" in found.text
    assert "llama-cli -m out.gguf" in card(tmp_path / "gguf").text
    assert card(tmp_path / "ct").data.to_dict()["library_name"] == "transformers"


def test_an_edited_card_still_says_the_base_model(
    tiny_model: Any, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    potq.save(quantized(tiny_model, "some/model"), tmp_path / "packed")
    own = tmp_path / "packed" / "README.md"
    own.write_text(own.read_text().replace(_MARK, "My own words."))
    export_compressed_tensors(potq.load(tmp_path / "packed"), tmp_path / "ct", byte_tokenizer)
    assert card(tmp_path / "ct").data.to_dict()["base_model"] == "some/model"


def test_somebody_elses_words_are_kept(tiny_model: Any, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = quantized(tiny_model)
    for _ in range(2):
        potq.save(model, tmp_path / "out", force=True)
        export_compressed_tensors(model, tmp_path / "ct", byte_tokenizer, force=True)
        export_gguf(model, tmp_path / "out.gguf", byte_tokenizer, force=True)
    for folder in (tmp_path, tmp_path / "out", tmp_path / "ct"):
        assert (folder / "README.md").read_text().count(_MARK) == 1
        (folder / "README.md").write_text(OWN)
    potq.save(model, tmp_path / "out", force=True)
    export_compressed_tensors(model, tmp_path / "ct", byte_tokenizer, force=True)
    export_gguf(model, tmp_path / "out.gguf", byte_tokenizer, force=True)
    for folder in (tmp_path, tmp_path / "out", tmp_path / "ct"):
        assert (folder / "README.md").read_text() == OWN


def test_a_model_in_full_precision_gets_none(tiny_model: Any, tmp_path: Path) -> None:
    from potq.checkpoint.folder import write

    write(tiny_model, tmp_path / "out")
    assert not (tmp_path / "out" / "README.md").exists()
    (tmp_path / "out" / "README.md").write_text(OWN)
    write(tiny_model, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "README.md").read_text() == OWN


def test_files_in_one_folder(tiny_model: Any, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = quantized(tiny_model)
    potq.save(model, tmp_path / "out")
    before = (tmp_path / "out" / "README.md").read_text()
    export_gguf(model, tmp_path / "out" / "a.gguf", byte_tokenizer)
    assert (tmp_path / "out" / "README.md").read_text() == before
    for name in ("a", "b", "a"):
        export_gguf(model, tmp_path / "two" / f"{name}.gguf", byte_tokenizer, force=True)
        assert "# a.gguf\n" in (tmp_path / "two" / "README.md").read_text()


def test_a_file_is_kept_where_its_card_fails(
    tiny_model: Any, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match=r"a\.gguf is written, whole"):
        export_gguf(quantized(tiny_model), tmp_path / "a.gguf", byte_tokenizer)
    assert [found.name for found in tmp_path.iterdir()] == ["a.gguf"]


def test_a_full_disk_leaves_the_old_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "README.md").write_text(MARKED)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_card(tmp_path, "# a\nother")
    assert [found.name for found in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == MARKED
