"""What a model folder must hold, looked at without torch."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from potq.checkpoint.files import check_dtype, check_source
from potq.errors import CheckpointError, ConfigError, ModelError


def test_a_folder_of_a_model(tiny_folder: Path, packed_folder: Path) -> None:
    assert check_source(str(tiny_folder), quantizing=True).folder == tiny_folder
    assert check_source(str(packed_folder)).folder == packed_folder
    with pytest.raises(CheckpointError, match="is quantized already"):
        check_source(str(packed_folder), quantizing=True)


@pytest.mark.parametrize(
    ("file", "content", "kind", "message"),
    [
        ("config.json", None, CheckpointError, r"config\.json is missing"),
        ("config.json", "{", CheckpointError, r"config\.json cannot be read"),
        ("config.json", "{}", ModelError, "names no model_type"),
        ("config.json", '{"quantization_config": {"quant_method": "potq", "scheme": 9}}', ConfigError, "scheme"),
        ("model.safetensors", None, CheckpointError, r"has no model\.safetensors"),
    ],
)
def test_a_folder_of_something_else(
    file: str, content: str | None, kind: type[Exception], message: str, packed_folder: Path
) -> None:
    (packed_folder / file).unlink()
    if content is not None:
        (packed_folder / file).write_text(content)
    with pytest.raises(kind, match=message):
        check_source(str(packed_folder))


def test_a_name_of_the_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        CheckpointError, match=r"some/model is not here, and the hub cannot be reached \(HF_HUB_OFFLINE is set\)"
    ):
        check_source("some/model")
    (tmp_path / "models--some--model").mkdir()
    assert check_source("some/model").name == "some/model"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError, "the hub has no such model"),
        (errors.HFValidationError, "no name that the hub could have"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached"),
        (errors.RemoteEntryNotFoundError, None),  # transformers can say more
        (None, None),
    ],
)
def test_a_name_that_is_asked_for(
    error: type[Exception] | None, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, file: str) -> None:
        assert (name, file) == ("some/model", "config.json")
        if error is not None:
            raise error.__new__(error)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    if message is None:
        assert check_source("some/model").name == "some/model"
    else:
        with pytest.raises(CheckpointError, match=f"some/model is not (a folder )?here, and .*{message}"):
            check_source("some/model")


def test_words_for_floats() -> None:
    for word in ("auto", "float32", "bfloat16", "half"):
        check_dtype(word)
    for word in ("int8", "fp16", ""):
        with pytest.raises(ConfigError, match="invalid dtype"):
            check_dtype(word)
