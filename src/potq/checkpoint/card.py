"""The model card: ``README.md`` with the metadata that model hubs read, written beside every saved model.

It says only what is known here: schemes, bits, sizes, how to load it; base model and licence where the source tells them.
A ``README.md`` that somebody else wrote, or a card whose mark was deleted, is never replaced.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import nn

from potq.nn.classes import answers, predicts_next, reads
from potq.nn.packed_model import packed_modules
from potq.nn.properties import tensor_bytes
from potq.version import __version__

CARD_FILE = "README.md"
NOT_QUANTIZED = "not quantized"
_MARK = "<!-- potq wrote this card and will write it again; delete this line to keep your own text -->"
_INHERITED = ("base_model", "license", "license_name", "license_link", "language")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LOAD = """```python
import potq  # before from_pretrained, which would else leave the weights random

{made}
```"""
_MODEL = 'model = potq.load("{path}")'
_BOTH = 'model, tokenizer = potq.load("{path}"), potq.load_tokenizer("{path}")'
_GENERATE = '\n\nor `potq generate {path} "Once upon a time"`.'
_ALONE = "\n\nIt comes without a tokenizer."


@dataclass(frozen=True)
class Part:
    """Weights that are stored alike.

    Attributes:
        scheme: potq's name of their scheme.
        form: how they are stored.
        weights: how many.
        nbytes: what they take, scales included.
    """

    scheme: str
    form: str
    weights: int
    nbytes: int


def packed_card(model: nn.Module, name: str, *, has_tokenizer: bool) -> str | None:
    """The card of a packed checkpoint called ``name``; None: the model is not packed."""
    owners = [module.quantized for module in packed_modules(model).values() if module.tied_to is None]
    if not owners:
        return None
    parts = [Part(weight.scheme.name, "packed", weight.shape[0] * weight.shape[1], weight.nbytes) for weight in owners]
    parts += [Part(NOT_QUANTIZED, str(p.dtype).removeprefix("torch."), p.numel(), p.nbytes) for p in model.parameters()]
    use = _use(type(model), has_tokenizer=has_tokenizer).replace("{path}", name)
    return model_card(model, name, parts, nbytes=tensor_bytes(model), library="potq", use=use)


def _use(kind: type, *, has_tokenizer: bool) -> str:
    """How to use a packed model of class ``kind``, whose place is ``{path}``."""
    if reads(kind) != "text":
        return _LOAD.format(made=_MODEL)
    if not has_tokenizer:
        return _LOAD.format(made=_MODEL) + _ALONE
    return _LOAD.format(made=_BOTH) + (_GENERATE if predicts_next(kind) or answers(kind) else "")


def model_card(
    model: Any, name: str, parts: Iterable[Part], *, nbytes: int, library: str, use: str, tags: Sequence[str] = ()
) -> str:
    """The card's text.

    Args:
        model: what was saved; its config says where it came from.
        name: the title.
        parts: the quantized weights, and others; those alike share a line.
        nbytes: of everything.
        library: what loads it, in the hubs' words.
        use: how to load it, Markdown.
        tags: further ones.
    """
    from huggingface_hub import ModelCardData

    known = _inherited(model)
    tags = ["potq", "power-of-two", *tags]
    task = "text-generation" if predicts_next(type(model)) else None
    data = ModelCardData(library_name=library, tags=tags, pipeline_tag=task, **known)
    base = f" from {known['base_model']}" if "base_model" in known else ""
    parts = list(parts)
    bits, quantized = _bits(parts), _bits([part for part in parts if part.scheme != NOT_QUANTIZED])
    sections = [
        f"---\n{data.to_yaml()}\n---\n{_MARK}\n\n# {name}",
        f"Quantized{base} by potq {__version__}: {nbytes / 1e6:.1f} MB, {bits:.4g} bits per weight of the whole model, "
        f"{quantized:.4g} per quantized weight.",
        _table(parts),
        f"## Use\n\n{use}",
    ]
    return "\n\n".join(sections) + "\n"


def _table(parts: Iterable[Part]) -> str:
    alike: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        alike.setdefault((part.scheme, part.form), []).append(part)
    lines = ["| scheme | stored as | tensors | weights | bits per weight |", "|---|---|---:|---:|---:|"]
    whole = {("all", ""): [part for group in alike.values() for part in group]} if len(alike) > 1 else {}
    for (scheme, form), group in (alike | whole).items():
        weights = sum(part.weights for part in group)
        lines.append(f"| {scheme} | {form} | {len(group)} | {weights:,} | {_bits(group):.4g} |")
    return "\n".join(lines)


def _bits(parts: Sequence[Part]) -> float:
    return 8 * sum(part.nbytes for part in parts) / sum(part.weights for part in parts)


def _inherited(model: Any) -> dict[str, Any]:
    """What the card of the model's source says that holds of its descendants; its name if it is a hub's."""
    source = str(getattr(model.config, "name_or_path", ""))
    if not source:
        return {}
    card = Path(source) / CARD_FILE
    if not card.is_file():
        is_hub_name = not Path(source).exists() and _HUB_NAME.fullmatch(source) is not None
        return {"base_model": source} if is_hub_name else {}
    found = _metadata(card)
    if not (_is_ours(card) or _was_packed(model)):
        found.pop("base_model", None)  # its base model, not ours
    return {key: found[key] for key in _INHERITED if key in found}


def _was_packed(model: Any) -> bool:
    """Whether the model's source was packed already, so that both have one base, whoever wrote the source's card."""
    return bool(getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False))


def _metadata(card: Path) -> dict[str, Any]:
    from huggingface_hub.repocard import metadata_load

    try:
        return metadata_load(card) or {}
    except Exception:  # YAML of any kind of brokenness: the source's card is not ours to judge
        return {}


def write_card(folder: Path, text: str | None, *, replaces: Path | None = None) -> None:
    """Put a card into ``folder``, if there is one to be written.

    Args:
        replaces: what ``folder`` will take the place of: a ``README.md`` there that is somebody else's is copied instead.
            None: the folder is there to stay, and may hold other models: only a card of the same title is written over.
    """
    target = folder / CARD_FILE
    if replaces is None:
        if os.path.lexists(target) and not (_is_ours(target) and text is not None and _title(text) in _lines(target)):
            return
    elif os.path.lexists(replaces / CARD_FILE) and not _is_ours(replaces / CARD_FILE):
        shutil.copy2(replaces / CARD_FILE, target, follow_symlinks=False)
        return
    if text is None:
        return
    partial = folder / f".{CARD_FILE}.{uuid4().hex}"  # exports of several files may run side by side
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _is_ours(card: Path) -> bool:
    return _MARK in _lines(card)


def _title(text: str) -> str:
    return next((line for line in text.splitlines() if line.startswith("# ")), "")


def _lines(card: Path) -> list[str]:
    return card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []
