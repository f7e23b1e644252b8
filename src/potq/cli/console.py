"""What every command shares: results on stdout, everything else on stderr, errors as one line."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from potq.errors import ConfigError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, which torch does

if TYPE_CHECKING:
    from potq.nn.report import QuantReport

_SECONDS, _LINES = 10.0, 10  # of progress where stderr is no terminal: at least between two, at most in all
_TRIED = 2.0  # seconds of work that the rest is estimated from
stderr = Console(stderr=True, markup=False, emoji=False)  # names may hold brackets, and :x: as datasets do


def stdout() -> Console:
    """A console for results; piped output is not cut to 80 columns."""
    return Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)


def emit_json(value: Any) -> None:
    """Print one JSON document, and nothing else, on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


def refuse_two_forms(*, as_json: bool, as_markdown: bool) -> None:
    """Raise ConfigError if both are asked for."""
    if as_json and as_markdown:
        raise ConfigError("--json and --markdown print two things on one stdout; choose one")


@dataclass(frozen=True)
class ReportForm:
    """How a report is to be printed."""

    every_module: bool
    as_markdown: bool
    as_json: bool

    def __post_init__(self) -> None:
        refuse_two_forms(as_json=self.as_json, as_markdown=self.as_markdown)

    @property
    def for_people(self) -> bool:
        """Whether more may stand beside the report."""
        return not (self.as_json or self.as_markdown)

    def show(self, report: QuantReport, more: dict[str, Any]) -> None:
        """Print ``report``; in JSON with what ``more`` holds."""
        if self.as_json:
            emit_json({**more, **report.to_dict()})
        elif self.as_markdown:
            print(report.to_markdown(every_module=self.every_module))
        else:
            stdout().print(*report.tables(every_module=self.every_module))


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


def only_errors() -> None:
    """Nothing but errors on stderr: of several processes the first one reports."""
    stderr.quiet = True


def error(message: str, who: str = "") -> None:
    """One message, whoever reports."""
    stderr.quiet = False
    stderr.print(f"error{who}:", style="bold red", end=" ")
    stderr.print(message, highlight=False, soft_wrap=True)


def note(message: str) -> None:
    """A line on stderr, beside the result; one line in a file too, whatever its length."""
    stderr.print(message, style="dim", highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Progress on stderr, a bar with ETA or, where that is no terminal, lines; yields ``update(done, total, what)``."""
    if not stderr.is_terminal:
        yield _Lines(label).update
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[what]}", markup=False), console=stderr, transient=True) as progress:
        task = progress.add_task(label, total=None, what="", count="")

        def update(done: int, total: int, what: str = "") -> None:
            progress.update(task, completed=done, total=total, what=what, count=f"{_short(done)}/{_short(total)}")

        yield update


class Forecast:
    """Passes progress on, and says once, after two seconds of it, what all will take; what is over before needs no word."""

    def __init__(self, label: str, update: Callable[[int, int, str], None]) -> None:
        self._label, self._update = label, update
        self._began = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first step was done, which is slower than others
        self._told = False

    def __call__(self, done: int, total: int, what: str = "") -> None:
        self._update(done, total, what)
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        since, first = self._first
        if self._told or now - since < _TRIED or done <= first or done >= total:
            return
        from potq.nn.report import duration

        self._told = True
        note(f"{self._label}: about {duration(now - self._began + (total - done) * (now - since) / (done - first))}")


class _Lines:
    """A line of progress every ten seconds or every tenth of the work, whichever comes later."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = self._told = time.monotonic()
        self._first = self._last = 0.0  # shares of the work

    def update(self, done: int, total: int, what: str = "") -> None:
        now, share = time.monotonic(), done / total if total else 1.0
        if share < self._last:  # other work under the same label
            self._began, self._told, self._first, self._last = now, now, share, share
        if int(_LINES * share) == int(_LINES * self._last) or now - self._told < _SECONDS:
            return
        from potq.nn.report import duration

        self._told, self._last = now, share
        elapsed = now - self._began
        left = f", about {duration(elapsed * (1 - share) / (share - self._first))} left" if share < 1 else ""
        note(f"{self._label}: {share:.0%}, {_short(done)}/{_short(total)} in {duration(elapsed)}{left} {what}".rstrip())


def _short(count: int) -> str:
    """Steps as they are, weights in millions."""
    return str(count) if count < 100_000 else f"{count / 1e6:.1f}M"


@contextmanager
def status(message: str) -> Iterator[None]:
    """A spinner on stderr while something without steps goes on."""
    with stderr.status(Text(message)):
        yield
