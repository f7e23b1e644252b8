"""A folder or file that is written whole or not at all: what is in the way, temporary names, renames, a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from potq.errors import CheckpointError, DataError


def resolved(path: str | os.PathLike[str]) -> Path:
    """The output that ``path`` names, links and ``~`` resolved.

    Raises:
        CheckpointError: it lies below a file, which is named.
    """
    target = Path(path).expanduser().resolve()
    blocked = next((parent for parent in target.parents if parent.exists() and not parent.is_dir()), None)
    if blocked is not None:
        raise CheckpointError(f"{blocked} is a file; choose another output than {path}")
    return target


def check_destination(
    path: str | os.PathLike[str], *, force: bool, sources: Iterable[str] = (), mark: str = "config.json"
) -> Path:
    """The folder to write, links and ``~`` resolved; refused if something is in the way. Called before any work is done.

    Args:
        force: replace a model folder that is there.
        sources: what the new model is made from, folders, files or hub names; it is not replaced even then.
        mark: a file without which a folder is something else, and is not replaced.

    Raises:
        CheckpointError: says what is in the way and what to do.
    """
    target = resolved(path)
    for source in sources:
        if os.path.exists(os.path.expanduser(source)) and target in (resolved(source), *resolved(source).parents):
            raise CheckpointError(f"{path} holds {source}, which the new model is made from; choose another output")
    if target == Path.cwd() or target in Path.cwd().parents:
        raise CheckpointError(f"{target} holds the current directory; choose a folder of its own for the checkpoint")
    recover(target)
    if not target.exists():
        return target
    if not target.is_dir():
        raise CheckpointError(f"{path} exists and is a file; choose another output folder")
    if not any(target.iterdir()):
        return target
    if not force:
        raise CheckpointError(f"{path} exists; choose another output folder, or pass --force (force=True) to replace it")
    if not (target / mark).exists():
        raise CheckpointError(f"{path} is not a model folder (it has no {mark}) and is never replaced, not even by force")
    return target


def write_whole(target: Path, content: str, failure: str) -> None:
    """Write a small text file, UTF-8, whole or not at all.

    Args:
        failure: how the error begins, e.g. "cannot write the page x.html".

    Raises:
        DataError: it cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise DataError(f"{failure} ({error.strerror})") from None


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary folder that takes ``target``'s place if the block succeeds and vanishes if it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = target.with_name(f".{target.name}.partial"), replaced_folder(target)
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
        flush_path(target.parent)
        if replaced.exists():
            replaced.rename(partial)  # a half-deleted folder must not pass for the old checkpoint
            shutil.rmtree(partial, ignore_errors=True)
    except BaseException:
        recover(target)
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replaced_folder(target: Path) -> Path:
    """Where the old folder stands between the two renames of a replacement."""
    return target.with_name(f".{target.name}.replaced")


def recover(target: Path) -> None:
    """Put the old folder back if a replacement was stopped between its two renames, drop it if it was stopped after them."""
    replaced = replaced_folder(target)
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    elif replaced.exists():
        shutil.rmtree(replaced)


@contextmanager
def disk_errors(target: Path, needed: int) -> Iterator[None]:
    """Turn a full disk into an error that names the folder and both sizes, if possible before anything is written."""
    free = shutil.disk_usage(next(parent for parent in target.parents if parent.exists())).free
    full = f"no room for {target}: it needs about {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; nothing was changed"
    if free < needed:
        raise CheckpointError(full)
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(full) from error
        raise CheckpointError(f"writing {target} failed ({error}); nothing was changed") from error


def flush(folder: Path) -> None:
    """Push the files to the disk before they are renamed, so that a power cut cannot leave an empty checkpoint.

    Files get the mode that the user's umask gives to new ones: safetensors writes them for their owner alone.
    """
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666  # the folder is new, so its mode tells the umask
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
        flush_path(path)


def flush_path(path: Path) -> None:
    """Push a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
