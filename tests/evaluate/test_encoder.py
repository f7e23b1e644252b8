"""BERTScore's encoder: the library's numbers, and what it refuses."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartModel,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from evaluate_helpers import PIECES, tiny_bert, word_pieces
from potq.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, ModelError
from potq.evaluate.encoder import Encoder, load_encoder

pytest.importorskip("bert_score")
pytestmark = pytest.mark.usefixtures("one_thread")  # models so small only wait for threads

TEXTS = ["the cat sat on the mat", "A dog barked, loudly.", "zebra", "nothing is like the cat", "it is on the mat"]


def test_a_text_is_wholly_like_itself(encoder: Encoder) -> None:
    assert encoder.f1(TEXTS, TEXTS) == pytest.approx([1.0] * len(TEXTS), abs=1e-5)


def test_f1_is_symmetric_and_less_than_one(encoder: Encoder) -> None:
    others = TEXTS[1:] + TEXTS[:1]
    there, back = encoder.f1(TEXTS, others), encoder.f1(others, TEXTS)
    assert there == pytest.approx(back, abs=1e-5)
    assert max(there) < 0.99


@pytest.mark.parametrize("layer", [1, 2])
def test_the_numbers_are_the_librarys_own(encoder_folder: Path, layer: int) -> None:
    from bert_score import BERTScorer

    others = TEXTS[2:] + TEXTS[:2]
    library = BERTScorer(model_type=str(encoder_folder), num_layers=layer, device="cpu")
    found = load_encoder(encoder_folder, layer).f1(TEXTS, others)
    assert found == pytest.approx(library.score(TEXTS, others)[2].tolist(), abs=1e-6)


def test_the_last_layer_is_the_default(encoder_folder: Path, encoder: Encoder) -> None:
    others = TEXTS[2:] + TEXTS[:2]
    assert (encoder.name, encoder.layer) == (str(encoder_folder), 2)
    assert encoder.f1(TEXTS, others) == pytest.approx(load_encoder(encoder_folder, 2).f1(TEXTS, others), abs=1e-6)
    assert encoder.f1(TEXTS, others) != pytest.approx(load_encoder(encoder_folder, 1).f1(TEXTS, others), abs=1e-3)


def test_an_encoder_that_the_library_knows_gets_its_layer(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bert_score.utils import model2layers

    monkeypatch.setitem(model2layers, "known", 1)
    for name, layer in {"known": 1, "roberta-large": 2}.items():  # the second has 17 in the library, and 2 here
        assert load_encoder(shutil.copytree(encoder_folder, tmp_path / name)).layer == layer


def test_how_many_texts_are_encoded_at_a_time(encoder: Encoder) -> None:
    others = TEXTS[2:] + TEXTS[:2]
    assert encoder.f1(TEXTS, others, batch=1) == pytest.approx(encoder.f1(TEXTS, others), abs=1e-5)


def test_empty_texts(encoder: Encoder) -> None:
    blank = ["", " \n", "\ufffd"]  # what no token stands for is empty too
    assert encoder.f1(blank, ["the cat"] * 3) == [0.0] * 3
    assert encoder.f1(["the cat"] * 3, blank) == [0.0] * 3
    assert encoder.f1(blank, blank[::-1]) == [1.0] * 3
    assert encoder.f1([], []) == []
    mixed = encoder.f1(["", "the cat", "the cat", ""], ["the cat", "the cat", "", ""])
    assert mixed == pytest.approx([0.0, 1.0, 0.0, 1.0], abs=1e-5)


def test_as_many_candidates_as_references(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="2 candidates against 1 references"):
        encoder.f1(["a", "b"], ["a"])


# ---- loading


def test_a_tokenizer_without_limit_in_a_folder_called_t5(tmp_path: Path, encoder: Encoder) -> None:
    tiny_bert().save_pretrained(tmp_path / "t5")  # for bert-score that name means a T5 model
    word_pieces().save_pretrained(tmp_path / "t5")
    long = "the cat " * 50
    found = load_encoder(tmp_path / "t5")
    assert found.f1([long, *TEXTS], [long, *TEXTS[::-1]]) == pytest.approx(
        encoder.f1([long, *TEXTS], [long, *TEXTS[::-1]]), abs=1e-5
    )


def test_the_encoder_of_an_encoder_decoder(tmp_path: Path) -> None:
    sizes = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):
        BartModel(BartConfig(vocab_size=len(PIECES), **sizes, **widths)).save_pretrained(tmp_path)
    word_pieces().save_pretrained(tmp_path)
    found = load_encoder(tmp_path)
    assert found.layer == 2
    assert found.f1(["the cat", "a dog"], ["the cat", "zebra"]) == [
        pytest.approx(1.0, abs=1e-5),
        pytest.approx(0, abs=0.999),
    ]


def test_the_first_word_for_roberta_is_one_after_a_space(tmp_path: Path) -> None:
    """As bert-score had it until transformers 5, which ignores what it asks of the tokenizer."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate([*special, *alphabet])}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        RobertaModel(RobertaConfig(vocab_size=len(vocab), **sizes)).save_pretrained(tmp_path)
    RobertaTokenizer(vocab=vocab, merges=[]).save_pretrained(tmp_path)
    plain, ours = AutoTokenizer.from_pretrained(tmp_path), load_encoder(tmp_path).tokenizer
    assert plain("cat")["input_ids"] != plain(" cat")["input_ids"]
    assert ours("cat")["input_ids"] == plain(" cat")["input_ids"]


def test_the_global_random_state_is_left_alone(encoder_folder: Path) -> None:
    before = torch.random.get_rng_state()
    load_encoder(encoder_folder)  # its pooler is not in the file, so transformers draws one
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_is_not_there(encoder_folder: Path, layer: int) -> None:
    with pytest.raises(ConfigError, match=f"has no layer {layer}; choose one of 1 to 2"):
        load_encoder(encoder_folder, layer)


@pytest.mark.parametrize("name", ["/no/such/folder", "./encoder", "~/no/such", "a/b/c", ""])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"encoder .* not found; give a folder"):
        load_encoder(name)


def test_a_hub_name_offline() -> None:
    with pytest.raises(
        CheckpointError, match=r"the encoder no/such-encoder is not here, and the hub cannot be reached \(HF_HUB"
    ):
        load_encoder("no/such-encoder")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file(encoder_folder: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_encoder(folder)


def test_weights_that_are_incomplete(encoder_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    bert = tiny_bert()
    state = {key: value for key, value in bert.state_dict().items() if "layer.1.output" not in key}
    bert.save_pretrained(folder, state_dict=state)
    with pytest.raises(CheckpointError, match=r"lacks encoder\.layer\.1\.output.*; it is incomplete"):
        load_encoder(folder)


@pytest.mark.parametrize("missing", ["pad", "ends"])
def test_a_tokenizer_that_is_not_like_berts(encoder_folder: Path, tmp_path: Path, missing: str) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    tokenizer = word_pieces(pad_token=None) if missing == "pad" else word_pieces()
    if missing == "ends":
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="cannot be used with bert-score"):
        load_encoder(folder)


def test_without_the_library(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bert_score.utils", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'potq\[bertscore\]'"):
        load_encoder(encoder_folder)
