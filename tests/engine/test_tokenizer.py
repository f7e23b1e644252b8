"""The engine's tokenizer against the ``tokenizers`` library, token for token."""

from __future__ import annotations

import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from potq.errors import EngineError

from .native_tokenizer import Tokenizer

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(*, prefix: bool = False, regex: bool = True) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


KINDS = {
    "gpt2": byte_level(),
    "prefix": byte_level(prefix=True),
    "llama3": sequence(split(LLAMA3), byte_level(regex=False)),
    "qwen2": sequence(split(LLAMA3.replace("{1,3}", "")), byte_level(regex=False)),
    "smollm2": sequence({"type": "Digits", "individual_digits": True}, byte_level()),
    "digit runs": sequence({"type": "Digits", "individual_digits": False}, byte_level()),
}
CODES = [
    *range(1, 0x250),
    *(0x300, 0x345, 0x5D0, 0x627, 0x661, 0x1680, 0x2000, 0x2003, 0x200B, 0x200D, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000),
    *(0xFEFF, 0x212A, 0x2160, 0xBD, 0xB2, 0x4E00, 0x3042, 0xAC00, 0x1100, 0x1F600, 0x1D7D8, 0x10FFFF, 0xE000, 0xFFFD),
]


@cache
def torture() -> list[str]:
    rng = random.Random(1)
    texts = []
    for _ in range(600):
        pool = [chr(code) for code in CODES] if rng.random() < 0.6 else list(" \n\r\t'sStTrReEvVlLdDmM019a.,!ſ ")  # noqa: RUF001
        texts.append("".join(rng.choice(pool) for _ in range(rng.randint(0, 60))))
    every = (chr(code) + rng.choice(["", "", " ", "a", "1", "'", "\n"]) for code in range(1, 0x110000) if code >> 11 != 27)
    texts += ["".join(every), "a" * 20000, " " * 9999, "\n" * 99 + " \n  x", "<|im_start|>a<|end|><|en<|end|>", "'" * 999]
    if "POTQ_DATA" in os.environ:
        texts.append((Path(os.environ["POTQ_DATA"]) / "wikitext2" / "wiki.test.raw").read_text("utf-8"))
    return texts


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|end|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [path.read_text("utf-8") for path in Path(__file__).parent.glob("*.py")]
    tokenizer.train_from_iterator([*texts, "don't we'll 1234 été 日本語 " * 50], trainer)
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_token_for_token(kind: str, ignore_merges: bool, trained: dict[str, Any], tmp_path: Path) -> None:
    content = {**trained, "pre_tokenizer": KINDS[kind]}
    content["model"] = {**trained["model"], "ignore_merges": ignore_merges}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    ours, theirs = Tokenizer(file), tokenizers.Tokenizer.from_file(str(file))
    pieces = [ours.bytes(token) for token in range(theirs.get_vocab_size())]
    every = kind == "smollm2" or DEEP  # twenty seconds each
    for text in torture()[:600] if ignore_merges else torture()[:: 1 if every else 4]:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ids, repr(text[:80])
        if kind != "prefix" and "<|" not in text:
            assert b"".join(pieces[token] for token in ids).decode() == text


MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}


def metaspace(scheme: str, *, cut: bool = False) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}


def normalizers(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


FALLBACK: dict[str, tuple[Any, Any]] = {  # normalizer and pre-tokenizer
    "llama 2": (normalizers(PREPEND, MARK), None),
    "replace": (MARK, None),
    "prepend": (PREPEND, None),
    "nothing": (None, None),
    "first": (None, metaspace("first")),  # what LlamaTokenizer saves
    "always": (None, metaspace("always")),
    "never": (None, metaspace("never")),
    "cut": (None, metaspace("first", cut=True)),
}


@pytest.fixture(scope="module")
def fallback() -> dict[str, Any]:
    """BPE over characters, of which most fall back to bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=60,
        show_progress=False,
    )
    texts = [path.read_text("utf-8") for path in Path(__file__).parent.glob("*.py")]
    tokenizer.train_from_iterator([*texts, "don't we'll 1234 été 日本語 " * 50], trainer)
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    return content


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("kind", FALLBACK)
def test_byte_fallback_token_for_token(kind: str, normalized: bool, fallback: dict[str, Any], tmp_path: Path) -> None:
    normalizer, pre_tokenizer = FALLBACK[kind]
    added = [{**token, "normalized": normalized} for token in fallback["added_tokens"]]
    content = {**fallback, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "added_tokens": added}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    ours, theirs = Tokenizer(file), tokenizers.Tokenizer.from_file(str(file))
    assert len({len(theirs.encode(text).ids) for text in "aü日"}) > 1, "nothing falls back"
    whole = not normalized and (kind == "nothing" or DEEP)  # half a minute each
    for text in [*torture()[: None if whole else 600], "a<s> b</s>c <s>", "<s>", " ▁ a", "▁", "<0xE4> <|end|>the"]:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ids, repr(text[:80])
        if not any(token["content"] in text for token in added):
            assert b"".join(map(ours.bytes, ids)).decode() == theirs.decode(ids)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "normalizer": ({"normalizer": {"type": "Lowercase"}}, "'Lowercase'"),
    "pre-tokenizer": ({"pre_tokenizer": {"type": "Metaspace"}}, "'Metaspace'"),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "none"),
    "pattern": ({"pre_tokenizer": sequence(split(r"\w+"), byte_level(regex=False))}, "does not know"),
    "model": ({"model": {"type": "Unigram"}}, "'Unigram'"),
    "post-processor": ({"post_processor": {"type": "BertProcessing"}}, "'BertProcessing'"),
    "huge id": ({"model": {"type": "BPE", "vocab": {"a": 2**31}, "merges": []}}, "invalid id"),
    **{
        key: ({"added_tokens": [{"id": 0, "content": "<x>", key: True}]}, f"'<x>' has {key}")
        for key in ("lstrip", "rstrip", "single_word")
    },
    "long template": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "x"}}] * 8 + [{"Sequence": {"id": "A"}}],
                "special_tokens": {"x": {"ids": [0] * 9}},
            }
        },
        "too long",
    ),
    "merge of nothing": ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "merge 0"),
}


REFUSED_FALLBACK: dict[str, tuple[dict[str, Any], str]] = {
    "normalizer": ({"normalizer": {"type": "NFKC"}}, "'NFKC'"),
    "another mark": ({"normalizer": {"type": "Prepend", "prepend": "_"}}, "'Prepend'"),
    "pre-tokenizer": ({"pre_tokenizer": byte_level()}, "'ByteLevel'"),
    "scheme": ({"pre_tokenizer": metaspace("last")}, "'last'"),
    "both": ({"normalizer": MARK, "pre_tokenizer": metaspace("first")}, "both write spaces"),
}


@pytest.mark.parametrize("name", REFUSED_FALLBACK)
def test_refusals_beside_byte_fallback(name: str, fallback: dict[str, Any], tmp_path: Path) -> None:
    changes, message = REFUSED_FALLBACK[name]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**fallback, "normalizer": None, "pre_tokenizer": None, **changes}))
    with pytest.raises(EngineError, match=message):
        Tokenizer(file)


def test_byte_fallback_needs_every_byte(fallback: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    vocabulary = {token: number for token, number in fallback["model"]["vocab"].items() if token != "<0x41>"}
    file.write_text(json.dumps({**fallback, "pre_tokenizer": None, "model": {**fallback["model"], "vocab": vocabulary}}))
    with pytest.raises(EngineError, match="no token <0x41>"):
        Tokenizer(file)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, trained: dict[str, Any], tmp_path: Path) -> None:
    changes, message = REFUSED[name]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**trained, "pre_tokenizer": KINDS["gpt2"], **changes}))
    with pytest.raises(EngineError, match=message):
        Tokenizer(file)


def test_texts_that_are_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**trained, "normalizer": {"type": "NFC"}}))
    tokenizer = Tokenizer(file)
    assert tokenizer.encode("é") == tokenizers.Tokenizer.from_file(str(file)).encode("é").ids
    with pytest.raises(EngineError, match="NFC"):
        tokenizer.encode("e\u0301")
    with pytest.raises(EngineError, match="UTF-8"):
        tokenizer.encode(b"a\xff")
