"""A tokenizer as tables for the C program: pieces, merges, and how a text begins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from potq.errors import ExportError

NONE = 0xFFFF
"""No token."""
_SPACE = "\u2581"  # SentencePiece's
_PROBE = "a"


@dataclass(frozen=True)
class Vocabulary:
    """What ``tokenizer.c`` needs.

    Attributes:
        pieces: the bytes of every token; special tokens have none.
        symbols: tokens of single characters by code point; of single bytes where ``byte_level``.
        merges: for every pair that merges, its rank and the merged token.
        byte_tokens: tokens that stand for a byte where a character has no other, 256 of them or NONE.
        unknown: the token of what has none, or NONE.
        fuses_unknown: whether several unknown characters in a row become one.
        prefix: tokens that begin every text.
        byte_level: GPT-2's bytes and words, else SentencePiece's characters.
        prepends_space: whether a text begins with a space of its own: 0 never, 1 always, 2 unless it begins with one anyway.
    """

    pieces: list[bytes]
    symbols: dict[int, int]
    merges: dict[tuple[int, int], tuple[int, int]]
    byte_tokens: list[int]
    unknown: int
    fuses_unknown: bool
    prefix: list[int]
    byte_level: bool
    prepends_space: int

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Vocabulary:
        """Of transformers' tokenizer.

        Raises:
            ExportError: a kind that ``tokenizer.c`` is not written for, or too many tokens.
        """
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
            raise ExportError("the tokenizer is none of the tokenizers package, which the C program is made from")
        parts = json.loads(backend.to_str())
        byte_level, prepends_space = _kind(parts)
        model = parts["model"]
        known: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        count = max(known.values()) + 1
        if count > NONE:
            raise ExportError(f"the tokenizer has {count} tokens; the C program takes up to {NONE}")
        special = {token["id"] for token in parts["added_tokens"]}
        pieces = [b""] * count
        for text, index in known.items():
            if index not in special:
                pieces[index] = _bytes_of(text, byte_level)
        plain = {text: index for text, index in model["vocab"].items() if index not in special}
        single = {text: index for text, index in plain.items() if len(text) == 1}
        byte_tokens = [plain.get(f"<0x{byte:02X}>", NONE) if model.get("byte_fallback") else NONE for byte in range(256)]
        symbols = (
            {_BYTES[text]: index for text, index in single.items()}
            if byte_level
            else {ord(text): index for text, index in single.items()}
        )
        return cls(
            pieces, symbols, _merges(model), byte_tokens, known.get(model.get("unk_token") or "", NONE),
            bool(model.get("fuse_unk")), _prefix(backend), byte_level, prepends_space,
        )  # fmt: skip


def _merges(model: dict[str, Any]) -> dict[tuple[int, int], tuple[int, int]]:
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        tokens = model["vocab"]
        if rank >= NONE:
            raise ExportError(f"the tokenizer has {len(model['merges'])} merges; the C program takes up to {NONE}")
        found.setdefault((tokens[left], tokens[right]), (rank, tokens[left + right]))
    return found


def _kind(parts: dict[str, Any]) -> tuple[bool, int]:
    """Whether it is byte-level, and when it begins a text with a space."""
    model, normalizer, cutter = parts["model"], parts["normalizer"], parts["pre_tokenizer"]
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges") if model.get(key)]
    if model["type"] != "BPE" or odd:
        raise _refused(f"a {model['type']} model" + (f" with {', '.join(odd)}" if odd else ""))
    if cutter is not None and cutter["type"] == "ByteLevel" and normalizer is None:
        if cutter["add_prefix_space"] or not cutter.get("use_regex", True):
            raise _refused("a byte-level model with a rule of its own for words")
        return True, 0
    if normalizer is None and cutter is not None and cutter["type"] == "Metaspace" and not cutter.get("split", True):
        return False, 2 * (cutter.get("prepend_scheme") in ("always", "first"))
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer or {}]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    if cutter is None and steps in ([prepend, replace], [replace]):
        return False, int(steps[0] == prepend)
    raise _refused("this way to normalize and cut text")


def _refused(what: str) -> ExportError:
    return ExportError(
        f"the C program has no tokenizer for {what}; it has SentencePiece's BPE (Llama 2) and GPT-2's byte-level BPE"
    )


def _prefix(backend: Any) -> list[int]:
    with_special = backend.encode(_PROBE).ids
    plain = backend.encode(_PROBE, add_special_tokens=False).ids
    start = len(with_special) - len(plain)
    if with_special[start:] != plain:
        raise _refused("texts that end with tokens of their own")
    return list(with_special[:start])


def _bytes_of(text: str, byte_level: bool) -> bytes:
    if byte_level:
        return bytes(_BYTES[character] for character in text)
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()
