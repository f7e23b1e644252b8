"""The rows of ``kernels/cpu.py`` read: ratios within a round, tables, and the goals that the kernels were given."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from benchmarks.common.results import Goal, Row
from benchmarks.peers.kernels.peer import Case

Cell = tuple[str, int]  # shape, m

WIDTH_4096 = ("4096x4096", "11008x4096", "4096x11008")
WIDTH_768 = ("768x768", "2304x768", "3072x768", "768x3072", "50257x768")
WIDTH_576 = ("576x576", "1536x576", "576x1536", "49152x576")
EVERY = WIDTH_768 + WIDTH_576 + WIDTH_4096
LARGE = tuple(shape for shape in EVERY if int(shape.split("x")[0]) * int(shape.split("x")[1]) * 4.25 / 8 >= 8e6)  # 8 MB
TOO_FAST = 1.15  # of the read bandwidth: nothing that reads its weight from memory is


class Results:
    """Rows by cell and contestant."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.cells: dict[Cell, dict[str, Row]] = {}
        for row in rows:
            if "shape" in row:
                self.cells.setdefault((row["shape"], row["m"]), {})[row["contestant"]] = row

    def timed(self, cell: Cell) -> dict[str, Row]:
        return {name: row for name, row in self.cells.get(cell, {}).items() if "microseconds" in row}

    def best(self, cell: Cell, group: str) -> Row | None:
        """The fastest contestant of a group."""
        rows = [row for row in self.timed(cell).values() if row["group"] == group]
        return min(rows, key=lambda row: float(row["microseconds"]), default=None)

    def speedup(self, cell: Cell, contestant: str, group: str) -> float | None:
        """How many times faster ``contestant`` is than the fastest of ``group``: median over the rounds."""
        ours, other = self.timed(cell).get(contestant), self.best(cell, group)
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


def table(results: Results, case: Case) -> Table:
    """One cell: every contestant, its speed, and how much faster it is than the best 4-bit peer and float32."""
    cell = (case.shape, case.m)
    best = results.best(cell, "4-bit")
    out = Table(title=f"{case.shape}, m = {case.m}" + (f"; best 4-bit peer: {best['contestant']}" if best else ""))
    for heading in ("contestant", "bits", "us", "GB/s", "GOP/s", "x best 4-bit", "x fp32", "of bandwidth", ""):
        out.add_column(heading, justify="left" if heading in ("contestant", "") else "right")
    for name, row in results.cells.get(cell, {}).items():
        out.add_row(name, *_columns(results, cell, row))
    return out


def _columns(results: Results, cell: Cell, row: Row) -> list[str]:
    if "skipped" in row:
        return [""] * 7 + [f"skipped: {row['skipped']}"]
    speed = f"{row['gbytes_per_s']:.1f}"
    if row["group"] == "bandwidth":
        return ["", "", speed, *[""] * 4, row["note"]]
    ratios = [results.speedup(cell, row["contestant"], group) for group in ("4-bit", "fp32")]
    part = results.of_bandwidth(cell, row["contestant"])
    return [
        f"{row['bits_per_weight']:.2f}",
        f"{row['microseconds']:.1f}",
        speed,
        f"{row['gops']:.0f}",
        *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        "" if part is None else f"{part:.0%}",
        row["note"] if part is None or part < TOO_FAST else f"[red]not cold?[/red] {row['note']}",
    ]


def goals(rows: Sequence[Row]) -> list[Goal]:
    """What the kernels are to reach on two threads; a ratio's goal is judged where it is worst."""
    results = Results(rows)

    def faster(contestant: str, group: str) -> Callable[[Cell], float | None]:
        return lambda cell: results.speedup(cell, contestant, group)

    def part(contestant: str) -> Callable[[Cell], float | None]:
        return lambda cell: results.of_bandwidth(cell, contestant)

    pot4 = faster("pot4", "4-bit")
    return [
        _worst("m=1, 4 bits / best 4-bit peer, every shape", 1.0, EVERY, 1, pot4),
        _mean("m=1, 4 bits / best 4-bit peer, geometric mean", 1.2, EVERY, 1, pot4),
        _worst("m=1, 4 bits, part of read bandwidth, weights >= 8 MB", 0.85, LARGE, 1, part("pot4")),
        _worst("m=1, 3 bits, part of read bandwidth, same shapes", 0.80, LARGE, 1, part("pot3")),
        _worst("m=1, 2 bits, part of read bandwidth, same shapes", 0.75, LARGE, 1, part("pot2")),
        *(_worst(f"m={m}, 4 bits / best 4-bit peer, 4096-wide", 3.0, WIDTH_4096, m, pot4) for m in (16, 128)),
        *(_worst(f"m={m}, 4 bits / best 4-bit peer, 768-wide", 1.5, WIDTH_768, m, pot4) for m in (16, 128)),
        *(_worst(f"m={m}, 4 bits / torch dynamic int8", 0.9, EVERY, m, faster("pot4", "int8")) for m in (16, 128)),
        _worst("m=1, 4 bits / torch fp32, 4096-wide", 7.0, WIDTH_4096, 1, faster("pot4", "fp32")),
        _worst("m=1, 2 bits / torch fp32, 4096-wide", 12.0, WIDTH_4096, 1, faster("pot2", "fp32")),
    ]


def _worst(name: str, target: float, shapes: Sequence[str], m: int, value: Callable[[Cell], float | None]) -> Goal:
    """Met if the least value over ``shapes`` reaches the target and none is missing."""
    found = [(v, shape) for shape in shapes if (v := value((shape, m))) is not None]
    if not found:
        return Goal(name=name, target=target, measured=None, met=False)
    least, where = min(found)
    missing = f", {len(shapes) - len(found)} shapes not measured" if len(found) < len(shapes) else ""
    met = least >= target and not missing
    return Goal(name=f"{name} (worst: {where}{missing})", target=target, measured=round(least, 4), met=met)


def _mean(name: str, target: float, shapes: Sequence[str], m: int, value: Callable[[Cell], float | None]) -> Goal:
    found = [v for shape in shapes if (v := value((shape, m))) is not None]
    if not found:
        return Goal(name=name, target=target, measured=None, met=False)
    mean = statistics.geometric_mean(found)
    return Goal(name=name, target=target, measured=round(mean, 4), met=mean >= target and len(found) == len(shapes))
