"""Texts to evaluate on: a UTF-8 file, or one that every Python installation has."""

from __future__ import annotations

from pathlib import Path

from potq.errors import DataError

BUILT_IN = "pydoc"


def read_text(source: str) -> str:
    """The text of a UTF-8 file; ``"pydoc"`` is the English of CPython's own help topics (``pydoc_data.topics``).

    Raises:
        DataError: the file is missing, empty, or not UTF-8.
    """
    if source == BUILT_IN and not Path(source).exists():
        from pydoc_data.topics import topics

        return "\n\n".join(topics[key] for key in sorted(topics))
    try:
        text = Path(source).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from None
    except OSError as error:
        raise DataError(f"cannot read the text {source} ({error.strerror}); give a file, or {BUILT_IN!r}") from None
    if not text.strip():
        raise DataError(f"{source} is empty")
    return text
