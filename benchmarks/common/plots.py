"""Pictures of results: one way to draw and to save them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def picture(path: Path, size: tuple[float, float], paint: Callable[[Any], None], *, dpi: int = 100) -> str:
    """Let ``paint`` draw on a figure of ``size`` inches and save it; says where, or why not."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: pip install matplotlib"
    figure = Figure(figsize=size, layout="constrained")
    paint(figure)
    path.parent.mkdir(exist_ok=True)
    with rc_context({"svg.hashsalt": "potq"}):  # the same drawing is the same file
        figure.savefig(path, dpi=dpi, metadata={"Date": None} if path.suffix == ".svg" else None)
    return f"drawn: {path.name}"
