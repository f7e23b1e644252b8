"""Rows of :mod:`potq.evaluate.compare` as one page: a chart and a table that need no network, for screens of any size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from potq.evaluate.compare import to_dict
from potq.evaluate.outputs import check_page
from potq.files import write_whole

if TYPE_CHECKING:
    from potq.evaluate.compare import Row

_TEMPLATE = Path(__file__).with_name("static") / "compare.html"


def page(rows: Sequence[Row], title: str, weights: int) -> str:
    """The page as HTML. The first row is what the others are compared with.

    Args:
        weights: the model's, which sizes are computed from.
    """
    data = [row | {"megabytes": row["bits_per_weight"] * weights / 8e6} for row in to_dict(rows)]
    for row in data:
        del row["window_nll"]  # as many as there are windows
    content = json.dumps({"title": title, "rows": data}, allow_nan=False).replace("<", "\\u003c")  # no tag ends it
    return _TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", content)


def write_page(rows: Sequence[Row], path: Path, title: str, weights: int) -> None:
    """Write :func:`page` to a file, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    check_page(path)
    write_whole(path, page(rows, title, weights), f"cannot write the page {path}")
