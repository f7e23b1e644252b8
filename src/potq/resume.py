"""A folder that a long run leaves its finished parts in, so that a killed run goes on where it stopped.

It belongs to one run: a fingerprint of the model's weights, the calibration tokens and the settings is kept with it, and
what another run left is not used. Every file is written under a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potq.errors import CheckpointError, ConfigError

_FINGERPRINT = "fingerprint"


class WorkFolder:
    """Named sets of tensors on disk."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Use ``folder``; what another run left there is deleted first.

        Raises:
            ConfigError: it is a file, or holds what no run left.
        """
        self.folder = folder
        mark = folder / _FINGERPRINT
        found = mark.read_bytes() if mark.is_file() else None
        if found is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"work_folder {folder} holds something else; give an empty folder, or one that does not exist")
        if found == fingerprint.encode():
            return  # writing it again would let a run that is killed right there, or one beside it, find half of it
        if found is not None:
            warnings.warn(f"{folder} was left by another run (other model, text or settings); starting anew", stacklevel=2)
            for file in (*folder.glob("*.safetensors"), *folder.glob("*.partial")):
                file.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(fingerprint, encoding="utf-8")

    def load(self, name: str) -> dict[str, Tensor] | None:
        """The tensors saved under ``name``, or None if they are missing or cannot be read."""
        file = self._file(name)
        try:
            return load_file(file) if file.is_file() else None
        except (OSError, SafetensorError):
            return None  # half a file from a full disk; the part is done again

    def save(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keep ``tensors`` under ``name``.

        Raises:
            CheckpointError: they cannot be written: the disk is full, or the folder is gone.
        """
        file = self._file(name)
        partial = file.with_suffix(".partial")
        try:
            save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, partial)
            os.replace(partial, file)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"{file} cannot be written ({error}); what was finished before is kept: make room, and run again"
            ) from error

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def fingerprint(
    model: nn.Module,
    batches: Sequence[Tensor],
    settings: Iterable[str],
    weights: Iterable[tuple[str, Tensor]] | None = None,
) -> str:
    """What a run depends on, as a hash: every weight, every token, every setting.

    Args:
        weights: what the model's state dict would hold, if the model itself does not.
    """
    return content_hash(chain(enumerate(batches), model.state_dict().items() if weights is None else weights), settings)


def content_hash(tensors: Iterable[tuple[Any, Tensor]], texts: Iterable[str]) -> str:
    """A hash of named tensors and of texts."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
