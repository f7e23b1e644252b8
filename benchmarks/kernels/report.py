"""The rows of the kernels' benchmarks as tables: on the terminal, and in the documents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.table import Table

from benchmarks.common.goals import Row
from benchmarks.common.markdown import captioned, goals_table, table
from benchmarks.common.results import Content
from benchmarks.kernels.goals import ACTIVATIONS, ACTIVATIONS_COST, CALL, CPU, ROOFLINE, difference, find
from benchmarks.kernels.rows import EVERY, Cell, Results, Roofline
from benchmarks.peers.kernels.peer import Case

TOO_FAST = 1.15  # of the read bandwidth: nothing that reads its weight from memory is


def cell_table(results: Results, case: Case) -> Table:
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


OURS = ("pot4", "pot3", "pot2")


def product_table(content: Content, m: int) -> str:
    """Microseconds of a product with ``m`` rows of activations; the last column is what memory gave meanwhile."""
    results, lines = Results(content["rows"]), []
    for shape in EVERY:
        cell = (shape, m)
        peers = [_named(results.best(cell, group)) for group in ("4-bit", "2-bit")]
        others = [results.best(cell, group) for group in ("int8", "fp32")]
        reads = [row["gbytes_per_s"] for row in results.timed(cell).values() if row["group"] == "bandwidth"]
        speed = f"{max(reads):.0f}" if reads else "-"
        lines.append([shape, *(_time(results.timed(cell).get(name)) for name in OURS), *peers, *map(_time, others), speed])
    theirs = ("best 4-bit peer", "best 2-bit peer", "torch int8", "torch fp32")
    return table((f"m = {m}, us", *(f"`{name}`" for name in OURS), *theirs, "read, GB/s"), lines)


def _named(row: Row | None) -> str:
    return f"{_time(row)} ({row['contestant']})" if row else "-"


def _time(row: Row | None) -> str:
    """Microseconds, three digits of them."""
    if row is None:
        return "-"
    found = row["microseconds"]
    return f"{found:.{max(0, 2 - len(str(int(found))) + 1)}f}" if found < 100 else f"{found:.0f}"


def activations_table(rows: Sequence[Row]) -> str:
    lines = []
    for model, text, window, scheme in dict.fromkeys((r["model"], r["text"], r["window"], r["scheme"]) for r in rows):
        exact, rounded = (find(rows, model, scheme, each) for each in ACTIVATIONS)
        change = difference(rows, model, scheme)
        if exact and rounded and change is not None:
            figures = [f"{row['perplexity']:.3f}" for row in (exact, rounded)]
            shares = [f"{change:+.2%}", f"{rounded['fine_share']:.1%}"]
            lines.append([f"{model} `{scheme}`, {text}, windows of {window}", *figures, *shares])
    headings = ("perplexity, first 40 windows", "float activations", "int8", "difference", "blocks rounded to 16 bits")
    return table(headings, lines)


def call_table(content: Content) -> str:
    lines = [
        [
            f"`{tuple(row['input'])}`" + (", bias" if row["bias"] else ""),
            row["mode"],
            *(f"{row[key]:.2f}" for key in ("potlinear_us", "nn_linear_us", "native_us")),
            f"{row['ratio']:.2f} ({row['ratio_quartiles'][0]:.2f}-{row['ratio_quartiles'][1]:.2f})",
        ]
        for row in content["rows"]
    ]
    headings = ("input", "mode", "`PoTLinear`, us", "`nn.Linear`, us", "in the library, us", "ratio (quartiles)")
    return table(headings, lines)


def roofline_table(content: Content) -> str:
    """Products in the cache as parts of the peak, those from memory as parts of what is read beside them."""
    roof = Roofline(content["rows"])
    lines = []
    for name, m in roof.names:
        cached, cold = roof.products["cache", m, name], roof.products["memory", m, name]
        compute = f"{cached['gops']:.0f} of {roof.peak[name]:.0f} ({roof.of_peak(name, m):.0%})"
        memory = f"{cold['gbytes_per_s']:.1f} ({roof.of_bandwidth(name, m):.0%})"
        lines.append([f"`{name}`, m = {m}", compute, f"{cached['gbytes_per_s']:.1f}", f"{cold['gops']:.0f}", memory])
    compute, memory = "in the caches: GOP/s of the peak", "codes, GB/s (of what is read meanwhile)"
    return table(("product", compute, "codes, GB/s", "from memory: GOP/s", memory), lines)


def profile_table(content: Content) -> str:
    """Where the engine's time goes, and what it would be with products at their roof."""
    roof, lines, headings = Roofline(content["rows"]), [], ["share of the time"]
    part = {"decode": roof.of_bandwidth("pot4", 1), "prefill": roof.of_peak("pot4", max(m for _, m in roof.names))}
    for row in (row for row in content["rows"] if row["what"] == "profile"):
        headings = ["share of the time", *row["shares"], "faster with products at their roof"]
        products = row["shares"]["products"]
        best = 1 / (1 - products + products * part[row["text"]])
        lines.append([row["text"], *(f"{share:.0%}" for share in row["shares"].values()), f"{best:.2f}"])
    return table(headings, lines)


def document() -> dict[str, str]:
    """The tables of docs/kernels.md."""
    products = {f"m={m}": captioned(CPU, partial(product_table, m=m)) for m in (1, 4, 16, 128)}
    goals = captioned(CPU, lambda content: goals_table(content["goals"]))
    calls = captioned(CALL, call_table)
    why = {"roofline": captioned(ROOFLINE, roofline_table), "profile": captioned(ROOFLINE, profile_table)}
    measured = {"activations": activations_table(ACTIVATIONS_COST.read()["rows"]), "call": calls}
    return measured | products | why | {"goals": goals}
