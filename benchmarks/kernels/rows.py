"""The rows of ``kernels/cpu.py`` and ``roofline.py`` read: by shape and contestant, ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from benchmarks.common.goals import Row

Cell = tuple[str, int]  # shape, m

WIDTH_4096 = ("4096x4096", "11008x4096", "4096x11008")
WIDTH_768 = ("768x768", "2304x768", "3072x768", "768x3072", "50257x768")
WIDTH_576 = ("576x576", "1536x576", "576x1536", "49152x576")
EVERY = WIDTH_768 + WIDTH_576 + WIDTH_4096
LARGE = tuple(shape for shape in EVERY if int(shape.split("x")[0]) * int(shape.split("x")[1]) * 4.25 / 8 >= 8e6)  # 8 MB


class Results:
    """Rows by cell and contestant."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.cells: dict[Cell, dict[str, Row]] = {}
        for row in rows:
            if "shape" in row:
                self.cells.setdefault((row["shape"], row["m"]), {})[row["contestant"]] = row

    def timed(self, cell: Cell) -> dict[str, Row]:
        return {name: row for name, row in self.cells.get(cell, {}).items() if "microseconds" in row}

    def best(self, cell: Cell, group: str, whose: str = "") -> Row | None:
        """The fastest contestant of a group, of those whose name begins with ``whose``."""
        rows = [row for name, row in self.timed(cell).items() if row["group"] == group and name.startswith(whose)]
        return min(rows, key=lambda row: float(row["microseconds"]), default=None)

    def speedup(self, cell: Cell, contestant: str, group: str, whose: str = "") -> float | None:
        """How many times faster ``contestant`` is than the :meth:`best` of ``group``: median over the rounds."""
        ours, other = self.timed(cell).get(contestant), self.best(cell, group, whose)
        if ours is None or other is None:
            return None
        return statistics.median(float(b / a) for a, b in zip(ours["rounds_us"], other["rounds_us"], strict=True))

    def of_bandwidth(self, cell: Cell, contestant: str) -> float | None:
        """Weight bytes per second as a part of the fastest read of memory in the same round: median over the rounds."""
        ours, reads = self.timed(cell).get(contestant), self.reads(cell)
        if ours is None or not reads:
            return None
        return statistics.median(rate / read for rate, read in zip(_rates(ours), reads, strict=True))

    def reads(self, cell: Cell) -> list[float]:
        """GB/s that the faster reader of memory reached, round by round."""
        readers = [_rates(row) for row in self.timed(cell).values() if row["group"] == "bandwidth"]
        return [max(rates) for rates in zip(*readers, strict=True)]


def _rates(row: Row) -> list[float]:
    """GB/s of every round."""
    total = row["gbytes_per_s"] * row["microseconds"]
    return [total / microseconds for microseconds in row["rounds_us"]]


class Roofline:
    """Rows of ``kernels/roofline.py``: products by place, rows of activations and name."""

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self.peak: dict[str, float] = {row["name"]: row["gops"] for row in rows if row["what"] == "int8 peak"}
        self.products = {(row["where"], row["m"], row["name"]): row for row in rows if row["what"] == "product"}
        self.names = [(name, m) for where, m, name in self.products if where == "cache"]

    def of_peak(self, name: str, m: int) -> float:
        """Of a product whose weight stays in the caches."""
        return float(self.products["cache", m, name]["gops"]) / self.peak[name]

    def of_bandwidth(self, name: str, m: int) -> float:
        """Of a product whose weight comes from memory, beside bytes that are merely read."""
        read = max(row["gbytes_per_s"] for (_, rows, who), row in self.products.items() if rows == m and "read" in who)
        return float(self.products["memory", m, name]["gbytes_per_s"]) / float(read)
