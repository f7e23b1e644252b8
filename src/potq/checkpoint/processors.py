"""What prepares a model's inputs: its tokenizer, or what makes tensors of images or recordings; and its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from potq.checkpoint.loading import class_at, first_line, load_tokenizer
from potq.checkpoint.source import Source, resolve
from potq.errors import CheckpointError, MissingDependencyError, out_of_reach
from potq.nn.classes import reads

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_ARE = {"images": "images are", "audio": "sound is"}
_TEMPLATES = ("chat_template.json", "chat_template.jinja")


def load_processor(source: str | os.PathLike[str], *, model_class: str | None = None) -> Any:
    """The tokenizer of a model that reads text, the image processor or feature extractor of one that reads those.

    Args:
        source: what :func:`potq.load` takes.
        model_class: as :func:`potq.load` has it.

    Raises:
        CheckpointError: the model comes without it, or it cannot be read.
        MissingDependencyError: it needs a package that is not installed.
        PotqError: as :func:`potq.load`, of the class.

    Example:
        >>> import potq
        >>> type(potq.load_processor("tiny")).__name__ == type(potq.load_tokenizer("tiny")).__name__
        True
    """
    kind = class_at(source, model_class)
    what = reads(kind) if kind is not None else "text"
    if what not in ("images", "audio"):
        return load_tokenizer(source)
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    where = resolve(source)
    if where.folder is not None and not any((where.folder / name).is_file() for name in PROCESSOR_FILES[:2]):
        raise CheckpointError(
            f"{source} has no {PROCESSOR_FILES[0]}, which says how {_ARE[what]} prepared; copy it from the model's source"
        )
    maker: Any = AutoImageProcessor if what == "images" else AutoFeatureExtractor
    try:
        return maker.from_pretrained(where.name, trust_remote_code=False)
    except ImportError as error:
        raise MissingDependencyError(f"what prepares {what} for {source} needs more: {first_line(error)}") from error
    except Exception as error:  # transformers raises many kinds
        reason = out_of_reach(where.name, error) if where.folder is None else None
        raise CheckpointError(
            reason or f"{source}: what prepares its {what} cannot be read ({first_line(error)})"
        ) from error


def processor_files(source: str | os.PathLike[str]) -> list[Path]:
    """The files of a model that say how images and recordings are prepared, for a copy of the model.

    Those of its tokenizer are not among them.
    """
    where = resolve(source)
    if where.gguf_file is not None:
        return []
    found = (_file(where, name) for name in (*PROCESSOR_FILES, *_TEMPLATES))
    return [file for file in found if file is not None]


def _file(where: Source, name: str) -> Path | None:
    if where.folder is not None:
        return file if (file := where.folder / name).is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(
        where.name,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found is not None else None
