"""A folder's tokenizer by ``tokenizers`` alone, against what transformers makes of it: the same ids, the same texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from potq.engine.tokenizer import file_tokenizer, lost_characters

TRAINED_ON = ["the cat sat on the mat, then the other cat", "zwölf Boxkämpfer", "日本語 don't we'll 1234 été " * 9]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def trained(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of byte-level BPE."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    inner.train_from_iterator(TRAINED_ON, trainer)
    model = json.loads(inner.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def byte_fallback() -> tuple[dict[str, int], list[tuple[str, str]]]:
    words = ["▁", "t", "h", "e", "c", "a", "ä", "▁t", "he", "▁the", "at", "cat"]
    vocab = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *BYTES, *words])}
    return vocab, [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "t"), ("c", "at")]


def wordpiece() -> Tokenizer:
    inner = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "cat": 2, "##s": 3, ",": 4}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return inner


def templated() -> Tokenizer:
    vocab, merges = trained(["<|end|>", "<|begin|>"])
    inner = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|end|>"), AddedToken("<|begin|>")])
    inner.add_tokens([AddedToken("<tool>", normalized=False), AddedToken(" cats ", lstrip=True)])
    inner.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", inner.token_to_id("<|begin|>"))]
    )
    return inner


def made(kind: str) -> Any:
    """A tokenizer of transformers, as a folder's would be."""
    if kind == "wordpiece":
        return PreTrainedTokenizerFast(tokenizer_object=wordpiece())
    if kind == "templated":
        return PreTrainedTokenizerFast(tokenizer_object=templated(), eos_token="<|end|>", bos_token="<|begin|>")
    if kind.startswith("llama"):
        vocab, merges = byte_fallback()
        extra = {"legacy": "legacy" in kind, "add_prefix_space": "bare" not in kind}
        return LlamaTokenizer(vocab=vocab, merges=merges, **extra)
    vocab, merges = trained(["<|endoftext|>"])
    if kind.startswith("qwen2"):
        tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.add_tokens(["<think>"])
        return tokenizer
    return GPT2Tokenizer(vocab=vocab, merges=merges, add_prefix_space="prefix" in kind)


KINDS = ["gpt2", "gpt2 prefix", "qwen2", "llama", "llama legacy", "llama bare", "wordpiece", "templated"]
PIECES = [
    *("<|end|>", "<|begin|>", "<|im_start|>", "<think>", "<tool>", " cats ", "<|endoftext|>"),
    *("<s>", "</s>", "<unk>", "<0xE4>", " ", "  the", "cat", "é", "e\u0301", "😀👩‍👩‍👧"),
]
UNICODE = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(PIECES)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """By kind: what ``tokenizers`` alone makes of a folder, and what transformers does."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("folder")
        made(kind).save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # as potq quantize does
        found[kind] = file_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    return found


@pytest.mark.parametrize("kind", KINDS)
@given(parts=UNICODE)
def test_the_same_ids_and_texts(kind: str, folders: dict[str, tuple[Any, Any]], parts: list[str]) -> None:
    ours, theirs = folders[kind]
    assert ours is not None
    text = "".join(parts)
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids
    for some in (ids, ids[1:], ids[:-1], ids[::-1]):
        for skip in (False, True):
            assert ours.decode(some, skip_special_tokens=skip) == theirs.decode(
                some, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )


def change(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


@pytest.mark.parametrize(
    "keys",
    [
        {"tokenizer_class": "T5Tokenizer"},
        {"tokenizer_class": None},
        {"add_bos_token": True},
        {"add_eos_token": True},
        {"split_special_tokens": True},
        {"fix_mistral_regex": True},
        {"auto_map": {"AutoTokenizer": ["a.B", None]}},
        {"added_tokens_decoder": {}},
        {"pad_token": "<pad>"},  # it is not in the file, and would be added
        {"extra_special_tokens": ["the"]},
        {"a_key_of_tomorrow": 1},
    ],
    ids=str,
)
def test_what_is_not_sure_is_left_to_transformers(keys: dict[str, Any], packed_folder: Path) -> None:
    assert file_tokenizer(packed_folder) is not None
    change(packed_folder / "tokenizer_config.json", **keys)
    assert file_tokenizer(packed_folder) is None


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer"])
def test_a_class_that_would_build_another_tokenizer(kind: str, tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=wordpiece()).save_pretrained(tmp_path)
    tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"))
    change(tmp_path / "tokenizer_config.json", tokenizer_class=kind, **tokens)
    assert file_tokenizer(tmp_path) is None


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_folder_without_its_files(file: str, packed_folder: Path) -> None:
    (packed_folder / file).unlink()
    assert file_tokenizer(packed_folder) is None


@pytest.mark.parametrize("file", ["added_tokens.json", "special_tokens_map.json", "tekken.json"])
def test_a_folder_with_more_files(file: str, packed_folder: Path) -> None:
    (packed_folder / file).write_text("{}")
    assert file_tokenizer(packed_folder) is None


@pytest.mark.parametrize(
    ("kind", "text", "lost"),
    [
        ("gpt2", "日本 😀 any byte", ""),
        ("llama", "日本 the😀", ""),  # byte fallback
        ("wordpiece", "The cats, The CAT 日 tür", "日tür"),  # lower case is another way to write it
        ("templated", "e\u0301 <|end|> 日", ""),  # composed, not lost
    ],
)
def test_lost_characters(kind: str, text: str, lost: str, folders: dict[str, tuple[Any, Any]]) -> None:
    for tokenizer in folders[kind]:
        assert lost_characters(tokenizer, text) == lost
