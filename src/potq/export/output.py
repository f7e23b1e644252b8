"""What all exports check beforehand, and a file that is written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from potq.errors import CheckpointError, ExportError
from potq.files import disk_errors, flush_path, resolved
from potq.nn.refusals import require_no_adapter, require_weights

if TYPE_CHECKING:
    from torch import nn


def check_file(path: str | os.PathLike[str], *, force: bool, suffix: str) -> Path:
    """The file to write, links and ``~`` resolved; refused if something is in the way. Called before any work is done.

    Raises:
        CheckpointError: says what is in the way and what to do.
    """
    target = resolved(path)
    if target.is_dir():
        raise CheckpointError(f"{path} is a folder; name a file")
    if target.suffix != suffix:  # engines, and potq, know the format by it
        raise CheckpointError(f"{path} does not end in {suffix}; write {path}{suffix}")
    if target.exists() and not force:
        raise CheckpointError(f"{path} exists; choose another output, or pass --force (force=True) to replace it")
    return target


def check_on_cpu(model: nn.Module) -> None:
    """Refuse a model whose weights are elsewhere, or not all that computes.

    Raises:
        ExportError: says what to do.
        ModelError: they are on the meta device, or offloaded; the model has an adapter.
    """
    require_no_adapter(model)
    require_weights(model)
    if any(tensor.device.type != "cpu" for tensor in model.state_dict().values()):
        raise ExportError("exports read weights in the CPU's memory; call model.cpu() first")


def refuse_experts(model: nn.Module, format: str) -> None:
    """Refuse packed stacks of experts' matrices, which no export writes yet.

    Raises:
        ExportError: names the first of them.
    """
    from potq.nn.packed_model import packed_modules
    from potq.nn.stacked import PoTStack

    if found := [name for name, module in packed_modules(model).items() if isinstance(module, PoTStack)]:
        raise ExportError(f"{found[0]} is a stack of experts' matrices, which the export to {format} cannot write")


def folder_bytes(folder: Path) -> int:
    """What the files of ``folder`` take."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def replacing_file(target: Path, needed: int) -> Iterator[Path]:
    """A temporary file that takes ``target``'s place if the block succeeds and vanishes if it fails.

    Raises:
        CheckpointError: ``needed`` bytes are not free, or the disk is full nevertheless.
    """
    with disk_errors(target, needed):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            yield partial
            flush_path(partial)
            os.replace(partial, target)
            flush_path(target.parent)
        finally:
            partial.unlink(missing_ok=True)
