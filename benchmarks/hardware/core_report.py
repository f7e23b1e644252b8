"""The tables of docs/hardware.md: cycles of kernels, and the integer model's perplexity."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Row
from benchmarks.common.markdown import goals_table, table
from benchmarks.hardware.core_goals import BARREL, CORES, MODEL, SHAPE, TOKEN

KERNELS = ("shift", "buckets", "table", "pairs", "planes", "multiply", "multiply_bytes", "add_bytes", "library")


def cycles_table(rows: Sequence[Row]) -> str:
    """A line a scheme and kernel, a column a core; what multiplies stands under the library's name where there is none."""
    cores = list(dict.fromkeys(row["core"] for row in rows if row["shape"] == SHAPE))
    found = {(row["scheme"], row["kernel"], row["core"]): row for row in rows if row["shape"] != TOKEN}
    lines = []
    for scheme, kernel in sorted({key[:2] for key in found}, key=lambda key: (_bits(key[0]), key[0], KERNELS.index(key[1]))):
        cells = [found.get((scheme, kernel, core)) for core in cores]
        lines.append([scheme, f"`{kernel}`", *(f"{row['cycles_per_weight']:.1f}" if row else "-" for row in cells)])
    return table(("scheme", "kernel", *cores), lines)


def _bits(scheme: str) -> int:
    """Most first."""
    return -int(next(character for character in scheme if character.isdigit()) + ("2" if scheme == "float32" else ""))


def token_table(rows: Sequence[Row]) -> str:
    """A whole token of TinyStories-656K."""
    tokens = [row for row in rows if row["shape"] == TOKEN]
    names = {"pot3": "cheapest kernels", "loop": "good loop of shifts and sums", "library": "library's multiplication"}
    lines = [[row["scheme"], names[row["kernel"]], f"{row['cycles'] / 1e6:.1f}"] for row in tokens]
    return table(("linears", "kernels", f"million cycles of a token, {BARREL}"), lines)


def perplexity_table(rows: Sequence[Row]) -> str:
    """Of the packed model and the integer model."""
    lines = []
    for row in rows:
        size = f"{row['flash'] / 1000:.0f} / {row['ram'] / 1000:.0f}" if "flash" in row else "-"
        ratio = f"{row['integer'] / row['packed']:.4f}"
        lines.append([row["model"], f"`{row['scheme']}`", f"{row['packed']:.2f}", f"{row['integer']:.2f}", ratio, size])
    headings = ("model", "scheme", "packed", "integers", "ratio", "flash / RAM of the C program, kB")
    return table(headings, lines)


def document() -> dict[str, str]:
    """The tables of docs/hardware.md."""
    cores, model = CORES.read(), MODEL.read()
    return {
        "cycles": cycles_table(cores["rows"]),
        "token": token_table(cores["rows"]),
        "integer perplexity": perplexity_table(model["rows"]),
        "goals": goals_table([*cores["goals"], *model["goals"]]),
    }
