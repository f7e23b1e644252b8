"""What every command shares: results on stdout, everything else on stderr, errors as one line."""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, which torch does

stderr = Console(stderr=True, markup=False)  # names may hold brackets


def stdout() -> Console:
    """A console for results; piped output is not cut to 80 columns."""
    return Console(width=None if sys.stdout.isatty() else 160, markup=False)


def emit_json(value: Any) -> None:
    """Print one JSON document, and nothing else, on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


def quiet_libraries() -> None:
    """Keep transformers' progress bars and notices off the terminal; potq reports what matters itself.

    transformers is not imported for that: it reads the variables when it is.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module="transformers")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:
        transformers_logging = importlib.import_module("transformers.utils.logging")
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def note(message: str) -> None:
    """A line on stderr, beside the result."""
    stderr.print(message, style="dim", highlight=False)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar with ETA on stderr; yields ``update(done, total, what)``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[what]}", markup=False), console=stderr, transient=True) as progress:
        task = progress.add_task(label, total=None, what="")

        def update(done: int, total: int, what: str = "") -> None:
            progress.update(task, completed=done, total=total, what=what)

        yield update


@contextmanager
def status(message: str) -> Iterator[None]:
    """A spinner on stderr while something without steps goes on."""
    with stderr.status(Text(message)):
        yield
