"""A tokenizer as GGUF metadata: byte-level BPE, and SentencePiece's kind of BPE (Llama 2's).

llama.cpp has the rules by which a text is cut into words built in, by name; a tokenizer with other rules is
refused here, because its text would become other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from potq.errors import ExportError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTE_LEVEL = ("ByteLevel", True)
_PRE_TOKENIZERS: dict[tuple[Any, ...], str] = {
    (_BYTE_LEVEL,): "gpt-2",
    (("Digits", True), _BYTE_LEVEL): "smollm",
    (("Split", _WORDS % r"\p{N}{1,3}"), ("ByteLevel", False)): "llama-bpe",
    (("Split", _WORDS % r"\p{N}"), ("ByteLevel", False)): "qwen2",
}
# llama.cpp never normalizes a text. Its own converter takes Qwen's tokenizers all the same: most text is in that form
_NORMALIZERS = {"qwen2": {"type": "NFC"}}


def add_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Write the tokens of ``tokenizer``, filled up to the model's ``size`` of them, special ids and the chat template.

    Raises:
        ExportError: a kind of tokenizer that llama.cpp does not know, or more tokens than the model has.
    """
    parts = _parts(tokenizer)
    tokens, types = _tokens(parts, size)
    if parts["model"].get("byte_fallback"):
        _add_sentencepiece(writer, parts, tokens)
    else:
        _add_byte_level(writer, parts)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special(writer, tokenizer)


def _parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError("a tokenizer without tokenizer.json cannot be exported to gguf")
    parts: dict[str, Any] = json.loads(backend.to_str())
    if parts["model"]["type"] != "BPE":
        raise ExportError(f"a tokenizer of type {parts['model']['type']} cannot be exported to gguf yet, only BPE")
    return parts


def _tokens(parts: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """The text and type of every id; ids without a token are marked as unused."""
    from gguf import TokenType

    known = {number: (text, TokenType.NORMAL) for text, number in parts["model"]["vocab"].items()}
    if parts["model"].get("byte_fallback"):
        known |= {i: (text, TokenType.BYTE) for i, (text, _) in known.items() if _is_byte(text)}
    for added in parts["added_tokens"]:
        known[added["id"]] = (added["content"], TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    unknown = parts["model"].get("unk_token")
    known |= {i: (text, TokenType.UNKNOWN) for i, (text, _) in known.items() if unknown is not None and text == unknown}
    if max(known) >= size:
        raise ExportError(f"the tokenizer has ids up to {max(known)}, the model only {size} tokens; resize its embedding")
    filled = [known.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(size)]
    return [text for text, _ in filled], [int(kind) for _, kind in filled]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _add_byte_level(writer: GGUFWriter, parts: dict[str, Any]) -> None:
    name = _PRE_TOKENIZERS.get(_rules(parts["pre_tokenizer"]))
    if name is None or parts["normalizer"] not in (None, _NORMALIZERS.get(name)):
        found = {key: parts[key] for key in ("normalizer", "pre_tokenizer")}
        raise ExportError(f"llama.cpp has no name that potq knows for how this tokenizer cuts text: {json.dumps(found)}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_merges([" ".join(pair) for pair in _merges(parts)])


def _rules(pre_tokenizer: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """What decides how a text is cut into words, in a form that can be compared."""
    if pre_tokenizer is None:
        return ()
    if pre_tokenizer["type"] == "Sequence":
        return tuple(rule for part in pre_tokenizer["pretokenizers"] for rule in _rules(part))
    if pre_tokenizer["type"] == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        return (("ByteLevel", pre_tokenizer["use_regex"]),)
    if pre_tokenizer["type"] == "Digits":
        return (("Digits", pre_tokenizer["individual_digits"]),)
    if pre_tokenizer["type"] == "Split" and pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]:
        return (("Split", pre_tokenizer["pattern"].get("Regex")),)
    return (("unknown",),)


def _merges(parts: dict[str, Any]) -> list[list[str]]:
    """Pairs of tokens; older files have them as one string."""
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in parts["model"]["merges"]]


def _add_sentencepiece(writer: GGUFWriter, parts: dict[str, Any], tokens: list[str]) -> None:
    """A token's score is minus the rank of the merge that makes it: llama.cpp merges the pair of greatest score."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(_merges(parts)):
        rank.setdefault("".join(pair), number)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(rank.get(token, len(rank))) for token in tokens])
    writer.add_add_space_prefix(_prepends_space(parts))


def _prepends_space(parts: dict[str, Any]) -> bool:
    """Whether a text gets a leading space; both ways in which tokenizer.json says so.

    Raises:
        ExportError: neither of the two.
    """
    pre, normalizer = parts["pre_tokenizer"], parts["normalizer"]
    if pre is not None and pre["type"] == "Metaspace" and normalizer is None and not pre["split"]:
        return bool(pre["prepend_scheme"] != "never")
    steps = [] if normalizer is None or normalizer["type"] != "Sequence" else normalizer["normalizers"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    if pre is None and steps in ([{"type": "Prepend", "prepend": "\u2581"}, replace], [replace]):
        return len(steps) == 2
    found = json.dumps({"normalizer": normalizer, "pre_tokenizer": pre})
    raise ExportError(f"this tokenizer does not treat spaces as SentencePiece does: {found}")


def _add_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            add(number)
    plain, special = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    before, after = _around(special, plain)
    for extra, own, name in ((before, tokenizer.bos_token_id, "begins"), (after, tokenizer.eos_token_id, "ends")):
        if extra not in ([], [own]):
            raise ExportError(f"a text {name} with the tokens {extra}, llama.cpp can only add {own}")
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    template = tokenizer.chat_template
    if isinstance(template, dict):
        writer.add_chat_template([{"name": name, "template": text} for name, text in template.items()])
    elif template is not None:
        writer.add_chat_template(template)


def _around(whole: list[int], part: list[int]) -> tuple[list[int], list[int]]:
    """What stands before and after ``part`` in ``whole``."""
    for start in range(len(whole) - len(part) + 1):
        if whole[start : start + len(part)] == part:
            return whole[:start], whole[start + len(part) :]
    raise ExportError("the tokenizer changes a text's own tokens when it adds special ones")
