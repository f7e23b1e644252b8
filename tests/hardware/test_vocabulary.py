"""The C tokenizer beside the model's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import potq
from potq.errors import ExportError
from potq.hardware import IntegerModel
from potq.hardware.program import build_program
from potq.hardware.vocabulary import Vocabulary

from .c_program import Built
from .test_model import random_model
from .test_program import written

TEXTS = [
    *("", " ", "the cat", " the  cat sat\n\non the mat, then it's over!", "I'll we've don't 'tis 'S"),
    *("a1b22 3,000 %$#\t\tx ", "\n x", "tail  "),
]


def sentence_piece(*, prepend: str) -> PreTrainedTokenizerFast:
    """A little vocabulary of Llama 2's kind, with some bytes and without most characters."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = "\u2581"
    if prepend == "normalizer":
        steps = [normalizers.Prepend(space), normalizers.Replace(" ", space)]
        inner.normalizer = normalizers.Sequence(steps)
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space, prepend_scheme="first", split=False)
    inner.decoder = decoders.Replace(space, " ")
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in (0xC3, 0xA9, 0xBC))]
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special[:2], show_progress=False)
    inner.train_from_iterator(["the cat sat on the mat, then the other cat \u00fcber"] * 3, trainer)
    vocabulary = inner.get_vocab()
    for token in special[2:]:
        vocabulary[token] = len(vocabulary)
    parts = json.loads(inner.to_str())
    parts["model"]["vocab"] = vocabulary
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)))


def built(folder: Path, tokenizer: Any) -> Built:
    model = IntegerModel.from_packed(random_model("llama"), context=64)
    return Built(written(folder, build_program(model, Vocabulary.from_tokenizer(tokenizer), ends=[])))


def check(program: Built, tokenizer: Any, texts: list[str]) -> None:
    for text, found in zip(texts, program.encode(*texts), strict=True):
        expected = tokenizer(text)["input_ids"]
        assert found == [len(expected), *expected], repr(text)


def test_byte_level_words(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    program = built(tmp_path, byte_tokenizer)
    check(program, byte_tokenizer, list(TEXTS))
    assert program.encode("na\u00efve", "x" * 65) == [[-2], [-1]]

    @settings(max_examples=15)
    @given(st.lists(st.text(st.sampled_from("ab1 ,'!\n\tsre"), max_size=20), min_size=10, max_size=10))
    def any_texts(texts: list[str]) -> None:
        check(program, byte_tokenizer, texts)

    any_texts()


@pytest.mark.parametrize("prepend", ["normalizer", "metaspace"])
def test_sentence_piece_characters(prepend: str, tmp_path: Path) -> None:
    tokenizer = sentence_piece(prepend=prepend)
    program = built(tmp_path, tokenizer)
    check(program, tokenizer, [*TEXTS, "caf\u00e9 \u00fc", "\u4e16\u754c the \U0001f600\U0001f600 cat"])

    @settings(max_examples=15)
    @given(st.lists(st.text(st.sampled_from("the cat\u00e9\u00fc\u4e16"), max_size=20), min_size=10, max_size=10))
    def any_texts(texts: list[str]) -> None:
        check(program, tokenizer, texts)

    any_texts()


def test_real_stories(data_dir: Path, tmp_path: Path) -> None:
    tokenizer = potq.load_tokenizer(data_dir / "tinystories-656k")
    words = Vocabulary.from_tokenizer(tokenizer)
    story = (data_dir / "tinystories" / "tinystories_sample_2MiB.txt").read_text(encoding="utf-8")[:150]
    check(built(tmp_path, tokenizer), tokenizer, [story, "Tom \u00fc!"])
    assert b"".join(words.pieces[token] for token in tokenizer(story)["input_ids"]).decode() == " " + story


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inner: setattr(inner, "normalizer", normalizers.NFC()), "no tokenizer for this way to normalize"),
        (
            lambda inner: setattr(inner, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "byte-level model with a rule of its own",
        ),
        (lambda inner: setattr(inner, "model", models.WordLevel({"a": 0})), "a WordLevel model"),
    ],
)
def test_other_tokenizers_are_refused(change: Any, message: str, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    change(byte_tokenizer.backend_tokenizer)
    with pytest.raises(ExportError, match=message):
        Vocabulary.from_tokenizer(byte_tokenizer)
