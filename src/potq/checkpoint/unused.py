"""Tensors of a checkpoint that its model has no place for: multi-token-prediction heads, further layers, a vision tower."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from potq.checkpoint.files import weight_files
from potq.checkpoint.folder import StoredTensor, read_headers
from potq.errors import CheckpointError
from potq.nn.packed_model import packed_modules
from potq.nn.report import UnusedTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unused_tensors(model: PreTrainedModel, unexpected: Iterable[str], stored: dict[str, StoredTensor]) -> list[UnusedTensor]:
    """What the files that ``model`` was loaded from hold, and it does not use.

    Args:
        unexpected: what transformers says of it. It keeps still about names that the model's class lists.
        stored: the headers of the files.
    """
    names = {name for found in unexpected for name in _in_file(found, stored)}
    names.update(_unmentioned(model, stored))
    return [UnusedTensor(name=name, nbytes=stored[name].nbytes if name in stored else 0) for name in sorted(names)]


def hub_headers(name: str) -> dict[str, StoredTensor]:
    """Of a model that was just fetched; empty if the cache holds its files as those of another revision, converted say."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return read_headers(weight_files(Path(snapshot_download(name, local_files_only=True))))
    except (LocalEntryNotFoundError, CheckpointError):
        return {}


def _in_file(name: str, stored: dict[str, StoredTensor]) -> list[str]:
    """The names in the file of a tensor that transformers may have renamed, or made of several (experts)."""
    if name in stored:
        return [name]
    if renamed := [key for key in stored if key.endswith(f".{name}") or name.endswith(f".{key}")]:
        return renamed[:1]
    parent = name.rpartition(".")[0]
    return [key for key in stored if key.startswith(f"{parent}.")] or [name]


def _unmentioned(model: PreTrainedModel, stored: dict[str, StoredTensor]) -> Iterator[str]:
    patterns = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    known = {*model.state_dict(), *(key for name in packed_modules(model) for key in (name, f"{name}.weight"))}
    for key in stored:
        if key not in known and any(pattern.search(key) for pattern in patterns):
            yield key
