"""A folder's tokenizer by the ``tokenizers`` package alone, where transformers would surely make the same of the folder.

transformers takes seconds to import. Its ``TokenizersBackend`` is a ``tokenizer.json`` as it stands; some of its classes
build a tokenizer of their own from the file's vocabulary, which is the file's where every part of it is alike.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from potq.checkpoint.files import read_json
from potq.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from potq.checkpoint.source import Source

_WHOLE = ("TokenizersBackend", "PreTrainedTokenizerFast", "PreTrainedTokenizer")  # the file as it stands
_HARMLESS = {  # keys of tokenizer_config.json that change neither ids nor texts; special tokens are looked at
    *("backend", "chat_template", "clean_up_tokenization_spaces", "errors", "is_local", "local_files_only"),
    *("model_input_names", "model_max_length", "name_or_path", "padding_side", "processor_class", "tokenizer_class"),
    *("max_length", "pad_to_multiple_of", "pad_token_type_id", "stride", "truncation_side", "truncation_strategy"),
    *("use_default_system_prompt", "extra_special_tokens", "additional_special_tokens"),
    *("pad_token", "bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token"),
}
_OTHER_FILES = ("added_tokens.json", "special_tokens_map.json", "tekken.json")  # of other versions and kinds
_GGUF_HEADER = 64 << 20  # bytes, at most
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates", "chat_templates")
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def check_chat_template(where: Source) -> None:
    """Refuse a model whose tokenizer surely has no chat template, before it is loaded.

    Raises:
        DataError: it has none.
    """
    if where.folder is not None and not _may_chat(where.folder, where.gguf_file):
        raise DataError("the tokenizer has no chat template; potq generate without --chat continues a text")


def _may_chat(folder: Path, gguf_file: str | None) -> bool:
    if gguf_file is not None:  # its key would be in the header, which is shorter than that
        with (folder / gguf_file).open("rb") as file:
            return b"tokenizer.chat_template" in file.read(_GGUF_HEADER)
    settings = folder / "tokenizer_config.json"
    if not settings.is_file() or read_json(settings).get("chat_template"):
        return True
    return any((folder / name).exists() for name in _TEMPLATES)


class TextTokenizer(Protocol):
    """What turns texts to tokens and back: transformers' tokenizers do, and :class:`FileTokenizer`."""

    def encode(self, text: str, /) -> list[int]:
        """Its token ids, those that begin or end a text included."""

    def decode(self, ids: list[int], /, *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """The text of token ids."""


class FileTokenizer:
    """A ``tokenizer.json`` as it stands."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.backend_tokenizer = tokenizer  # as transformers calls it

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.backend_tokenizer.encode(text).ids
        return ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool = False) -> str:
        text: str = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text


def file_tokenizer(folder: Path) -> FileTokenizer | None:
    """The folder's tokenizer, if it is what transformers would make of it; None where that is not sure."""
    from tokenizers import Tokenizer

    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # tokenizers raises bare Exception; transformers will say what is wrong
        return None
    if not isinstance(settings, dict) or any((folder / name).exists() for name in _OTHER_FILES):
        return None
    return FileTokenizer(tokenizer) if _is_alike(tokenizer, settings) else None


def lost_characters(tokenizer: TextTokenizer, text: str) -> str:
    """Characters of ``text``, each once, that no token of it stands for: the vocabulary lacks them, or some of their bytes.

    What the tokenizer writes in another way (in lower case, say) is not lost, and white space does not count. Only
    transformers' tokenizers in pure Python cannot tell; they have none.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return ""
    if backend.normalizer is not None:
        text = unicodedata.normalize("NFC", text)  # an accent that becomes a part of its letter is not lost
    unknown, read = _unknown(backend), backend.encode(text, add_special_tokens=False)
    places = [place for place, token in zip(read.offsets, read.ids, strict=True) if token != unknown]
    covered = {position for start, end in places for position in range(start, end)}
    kept = backend.decode(read.ids, skip_special_tokens=False)
    lost = (c for i, c in enumerate(text) if i not in covered or (c not in kept and _is_cut(tokenizer, c)))
    return "".join(character for character in dict.fromkeys(lost) if not character.isspace())


def _unknown(backend: Tokenizer) -> int | None:
    """The token of what has none."""
    token = getattr(backend.model, "unk_token", None)
    return backend.token_to_id(token) if token is not None else getattr(backend.model, "unk_id", None)


def _is_cut(tokenizer: TextTokenizer, character: str) -> bool:
    """Whether only some of its bytes have tokens."""
    ids = tokenizer.encode(character)
    return "\ufffd" in tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _is_alike(tokenizer: Tokenizer, settings: dict[str, Any]) -> bool:
    """Whether transformers, with these settings, changes nothing of what the file says."""
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    form = _FORMS.get(kind)
    if form is None and kind not in _WHOLE:
        return False
    if not settings.keys() <= (_HARMLESS | form.keys if form else _HARMLESS):
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    plain = {token.content for token in added if token.special and not (token.normalized or token.lstrip or token.rstrip)}
    if not plain.issuperset(_special_tokens(settings)):  # it would be added
        return False
    return form is None or (settings.keys() >= form.named and form.parts(settings) == _parts(tokenizer))


def _special_tokens(settings: dict[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        several = value.values() if isinstance(value, Mapping) and "content" not in value else value
        for token in [value] if key.endswith("_token") else several if key.endswith("special_tokens") else ():
            if token is not None:
                yield token["content"] if isinstance(token, Mapping) else str(token)


class _Form(NamedTuple):
    """What a class of transformers builds: its ``parts`` by settings, of which some (``keys``) are its own.

    It has special tokens by default, which are those of the settings where all are ``named`` there.
    """

    named: frozenset[str]
    keys: frozenset[str]
    parts: Callable[[dict[str, Any]], list[Any]]


def _parts(tokenizer: Tokenizer) -> list[Any]:
    """All but the vocabulary, the added tokens and the post-processor, which every class takes from the file."""
    model = tokenizer.model
    names = ("fuse_unk", "byte_fallback", "ignore_merges", "dropout", "unk_token")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    settings = [getattr(model, name, None) for name in names] + [getattr(model, name, None) or None for name in affixes]
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    return [type(model).__name__, *settings, *(None if part is None else json.loads(part.__getstate__()) for part in parts)]


def _byte_level(settings: dict[str, Any], *, qwen: bool) -> list[Any]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    built = Tokenizer(models.BPE(fuse_unk=False))
    cut: pre_tokenizers.PreTokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(settings.get("add_prefix_space")), use_regex=not qwen
    )
    if qwen:
        built.normalizer = normalizers.NFC()
        cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated", invert=False), cut])
    built.pre_tokenizer, built.decoder = cut, decoders.ByteLevel()
    return _parts(built)


def _llama(settings: dict[str, Any]) -> list[Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    built = Tokenizer(models.BPE(fuse_unk=True, byte_fallback=True))
    prefix = settings.get("add_prefix_space") in (None, True)
    scheme = ("always" if settings.get("legacy", False) else "first") if prefix else "never"
    built.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence([*steps, *([decoders.Strip(content=" ", left=1)] if prefix else [])])
    return _parts(built)


_PREFIX, _NAMED = frozenset({"add_prefix_space"}), frozenset({"bos_token", "eos_token", "unk_token"})
_QWEN2_NAMED = frozenset({"eos_token", "unk_token", "pad_token"})
_FORMS = {
    "GPT2Tokenizer": _Form(_NAMED, _PREFIX, partial(_byte_level, qwen=False)),
    "Qwen2Tokenizer": _Form(_QWEN2_NAMED, _PREFIX, partial(_byte_level, qwen=True)),
    "LlamaTokenizer": _Form(_NAMED, _PREFIX | {"legacy"}, _llama),
}
