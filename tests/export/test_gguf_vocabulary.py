"""Tokenizers as GGUF metadata, and those that llama.cpp would read otherwise."""

from __future__ import annotations

import json
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from potq.errors import ExportError
from potq.export.gguf.vocabulary import add_vocabulary

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}


def metadata(tokenizer: Any, size: int) -> dict[str, Any]:
    """What ``add_vocabulary`` writes, by key."""
    writer = gguf.GGUFWriter(None, "llama")
    add_vocabulary(writer, tokenizer, size)
    return {key: value.value for key, value in writer.kv_data[0].items() if key != "general.architecture"}


def changed(tokenizer: PreTrainedTokenizerFast, **parts: Any) -> PreTrainedTokenizerFast:
    """The same tokenizer with other parts of its tokenizer.json."""
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | parts
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<|end|>")


def sentencepiece(**parts: Any) -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2 has it: byte tokens, spaces as marks."""
    vocabulary = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab"]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {text: number for number, text in enumerate(vocabulary)},
        "merges": [["a", "b"], ["▁", "ab"]],
    }
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": vocabulary[number], **special} for number in (0, 1, 2)],
        "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": model,
    }
    inner = Tokenizer.from_str(json.dumps(content | parts))
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_byte_level(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    byte_tokenizer.add_tokens(["wordy"])
    byte_tokenizer.chat_template = "{{ messages }}"
    found = metadata(byte_tokenizer, 263)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[:260] == byte_tokenizer.convert_ids_to_tokens(list(range(260)))
    assert tokens[260:] == ["wordy", "[PAD261]", "[PAD262]"]
    assert (types[0], set(types[1:260]), types[260:]) == (3, {1}, [4, 5, 5])  # control, normal, user-defined, unused
    assert found["tokenizer.ggml.merges"] == ["h e", "t he", "a t"]
    assert found["tokenizer.ggml.eos_token_id"] == 0
    assert "tokenizer.ggml.bos_token_id" not in found
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (False, False)
    assert found["tokenizer.chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([BYTE_LEVEL], "gpt-2"),
        ([DIGITS, BYTE_LEVEL], "smollm"),
        ([SPLIT, {**BYTE_LEVEL, "use_regex": False}], "llama-bpe"),
        ([{**SPLIT, "pattern": {"Regex": QWEN2}}, {**BYTE_LEVEL, "use_regex": False}], "qwen2"),
    ],
)
def test_names_of_the_rules(byte_tokenizer: PreTrainedTokenizerFast, parts: list[Any], name: str) -> None:
    tokenizer = changed(byte_tokenizer, pre_tokenizer={"type": "Sequence", "pretokenizers": parts})
    assert metadata(tokenizer, 260)["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}},
        {"pre_tokenizer": {**BYTE_LEVEL, "use_regex": False}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**DIGITS, "individual_digits": False}, BYTE_LEVEL]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**SPLIT, "pattern": {"Regex": "x"}}, BYTE_LEVEL]}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "Lowercase"}},
    ],
)
def test_unknown_rules_are_refused(byte_tokenizer: PreTrainedTokenizerFast, parts: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match=r"llama.cpp has no name that potq knows"):
        metadata(changed(byte_tokenizer, **parts), 260)


@pytest.mark.parametrize(
    ("parts", "prepends"),
    [
        ({}, True),
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE]}}, False),
        ({"normalizer": None, "pre_tokenizer": METASPACE}, True),
        ({"normalizer": None, "pre_tokenizer": {**METASPACE, "prepend_scheme": "never"}}, False),
    ],
)
def test_sentencepiece(parts: dict[str, Any], prepends: bool) -> None:
    found = metadata(sentencepiece(**parts), 9)
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.token_type"] == [2, 3, 3, 6, 1, 1, 1, 1, 1]  # unknown, control, byte, normal
    assert found["tokenizer.ggml.scores"] == [-2, -2, -2, -2, -2, -2, -2, 0, -1]
    assert found["tokenizer.ggml.add_space_prefix"] == prepends
    assert [found[f"tokenizer.ggml.{name}_token_id"] for name in ("unknown", "bos", "eos")] == [0, 1, 2]
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (True, False)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": None},
        {"normalizer": {"type": "Sequence", "normalizers": [PREPEND]}},
        {"normalizer": {"type": "NFC"}},
        {"normalizer": None, "pre_tokenizer": {**METASPACE, "split": True}},
        {"pre_tokenizer": METASPACE},
    ],
)
def test_other_ways_with_spaces_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="does not treat spaces as SentencePiece does"):
        metadata(sentencepiece(**parts), 9)


def test_more_tokens_than_the_model_has(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ExportError, match="ids up to 259, the model only 259 tokens"):
        metadata(byte_tokenizer, 259)


def test_other_models_are_refused() -> None:
    words = Tokenizer.from_str(json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}))
    with pytest.raises(ExportError, match="type WordLevel cannot be exported to gguf yet, only BPE"):
        metadata(PreTrainedTokenizerFast(tokenizer_object=words), 1)


def test_a_first_token_other_than_bos_is_refused() -> None:
    tokenizer = sentencepiece()
    tokenizer.bos_token = "a"
    tokenizer.backend_tokenizer.post_processor = Tokenizer.from_str(
        sentencepiece().backend_tokenizer.to_str()
    ).post_processor
    with pytest.raises(ExportError, match=r"a text begins with the tokens \[1\], llama.cpp can only add 5"):
        metadata(tokenizer, 9)
