"""What the commands have in common that measure variants of a model and print a table of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potq.cli import console

if TYPE_CHECKING:
    from rich.table import Table


def check_measured(model: str, dtype: str, resume: Path | None, plot: Path | None, page: Path | None = None) -> None:
    """Look at all that can be wrong with these words before torch is loaded.

    Raises:
        PotqError: says which is wrong, and what to do.
    """
    from potq.checkpoint.files import check_dtype, check_source
    from potq.evaluate.outputs import check_page, check_plot, check_rows_file

    check_dtype(dtype)
    if plot is not None:
        check_plot(plot)
    if page is not None:
        check_page(page)
    if resume is not None:
        check_rows_file(resume)
    check_source(model, quantizing=True)


def show_measured(
    title: str,
    fields: Callable[[], dict[str, Any]],
    markdown: Callable[[], str],
    table: Callable[[], Table],
    *,
    as_json: bool,
    as_markdown: bool,
) -> None:
    """Print one of the three forms on stdout; ``title`` stands above the two for people."""
    if as_json:
        console.emit_json(fields())
    elif as_markdown:
        print(f"{title}\n\n{markdown()}")
    else:
        out = console.stdout()
        out.print(title, highlight=False, soft_wrap=True)
        out.print(table())
