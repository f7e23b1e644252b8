"""What the tests of evaluation share."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluate_helpers import tiny_bert, word_pieces
from potq.evaluate.encoder import Encoder, load_encoder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    tiny_bert().save_pretrained(folder)
    word_pieces(model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    return load_encoder(encoder_folder)
