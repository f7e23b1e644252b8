"""What is known to be wrong with an output before the work, and before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from potq.errors import DataError, MissingDependencyError


def check_rows_file(file: Path) -> None:
    """Find out that rows cannot be kept.

    Raises:
        DataError: the file's folder does not exist.
    """
    if not file.parent.is_dir():
        raise DataError(f"cannot keep rows in {file}: the folder {file.parent} does not exist")


def check_page(path: Path) -> None:
    """Find out before the work that a page cannot be written.

    Raises:
        DataError: its folder does not exist, or it is a folder.
    """
    if not path.parent.is_dir():
        raise DataError(f"cannot write the page {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise DataError(f"cannot write the page {path}: it is a folder; name a file")


def check_plot(path: Path) -> None:
    """Find out before the work that a plot cannot be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        DataError: its folder does not exist.
    """
    if not path.parent.is_dir():
        raise DataError(f"cannot write the plot {path}: the folder {path.parent} does not exist")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingDependencyError("--plot draws with matplotlib: pip install 'potq[plot]'") from None
