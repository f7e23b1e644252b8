"""Tables of results in the documents, between the comments ``<!-- mark -->`` and ``<!-- end -->``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results_io import RESULTS

DOCS = Path(__file__).resolve().parent.parent / "docs"


def results(name: str) -> dict[str, Any]:
    """What ``results/NAME.json`` holds."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def put(name: str, tables: Mapping[str, str]) -> None:
    """Write each of ``tables`` at its mark in ``docs/NAME.md``."""
    path = DOCS / f"{name}.md"
    text = path.read_text(encoding="utf-8")
    for mark, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        if not end:
            raise SystemExit(f"{path}: no lines '<!-- {mark} -->' and '<!-- end -->'")
        text = before + begin + table + end + after
    path.write_text(text, encoding="utf-8")
