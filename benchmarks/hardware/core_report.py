"""The tables of docs/hardware.md: cycles of kernels, and the integer model's perplexity."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Row
from benchmarks.common.markdown import goals_table, table
from benchmarks.hardware.core_goals import BARREL, CORES, MODEL, SHAPE, TABLE_FREE, TABLES, TOKEN, cycles

KERNELS: tuple[str, ...] = ("shift", "test_and_add", "buckets", "table", "pairs", "planes")
KERNELS += ("multiply", "multiply_bytes", "dual", "dual_bytes", "add_bytes", "library")


def kernels_table(rows: Sequence[Row], unit: str, *, pico: bool = False) -> str:
    """A line a scheme and kernel, a column a core; what multiplies stands under the library's name where there is none."""
    rows = [row for row in rows if row.get("unit") == unit and row["core"].startswith("PicoRV32") == pico]
    cores = list(dict.fromkeys(row["core"] for row in rows))
    found = {(row["scheme"], row["kernel"], row["core"]): row for row in rows}
    pairs = {(row["scheme"], row["kernel"]) for row in rows}
    lines = []
    for scheme, kernel in sorted(pairs, key=lambda key: (_bits(key[0]), key[0], KERNELS.index(key[1]))):
        cells = [found.get((scheme, kernel, core)) for core in cores]
        lines.append([scheme, f"`{kernel}`", *(f"{row['per_weight']:.1f}" if row else "-" for row in cells)])
    return table(("scheme", "kernel", *cores), lines)


def gains_table(rows: Sequence[Row]) -> str:
    """What a weight takes on every core by multiplication and by PoT, and the best int4 without table."""
    cores = list(dict.fromkeys(row["core"] for row in rows if row["shape"] == SHAPE))
    lines = []
    for core in cores:
        unit = next(row["unit"] for row in rows if row["core"] == core and "unit" in row)
        multiplied = cycles(rows, core, "int8", ("multiply_bytes", "dual_bytes"))
        found = [multiplied, cycles(rows, core, "int8", ("add_bytes",)), cycles(rows, core, "int8", TABLES)]
        found += [cycles(rows, core, scheme, kernels) for kernels in (TABLE_FREE, TABLES) for scheme in ("int4", "pot4")]
        found += [cycles(rows, core, scheme, TABLES) for scheme in ("pot3", "pot2")]
        lines.append([core, unit, *("-" if each is None else f"{each:.1f}" for each in found)])
    headings = ("int8 multiplied", "int8 by shifts and sums", "int8 table", "int4 no table", "pot4 no table")
    return table(("core", "of a weight", *headings, "int4 table", "pot4 table", "pot3 table", "pot2 table"), lines)


def _bits(scheme: str) -> int:
    """Most first."""
    return -int(next(character for character in scheme if character.isdigit()) + ("2" if scheme == "float32" else ""))


def token_table(rows: Sequence[Row]) -> str:
    """A whole token of TinyStories-656K."""
    tokens = [row for row in rows if row["shape"] == TOKEN]
    found = {(row["core"], row["kernel"]): f"{row['cycles'] / 1e6:.1f}" for row in tokens}
    cores = list(dict.fromkeys(row["core"] for row in tokens))
    names = {
        "pot3": "pot3, cheapest kernels",
        "int4": "int4, cheapest kernels",
        "int8": "int8, cheapest kernels",
        "loop": "int8, good loop of shifts and sums",
        "multiplication": "int8, multiplication",
    }
    lines = [[core, *(found.get((core, kernel), "-") for kernel in names)] for core in cores]
    return table(("million cycles of a token", *names.values()), lines)


def perplexity_table(rows: Sequence[Row]) -> str:
    """Of the packed model and the integer model."""
    lines = []
    for row in rows:
        size = f"{row['flash'] / 1000:.0f} / {row['ram'] / 1000:.0f}" if "flash" in row else "-"
        ratio = f"{row['integer'] / row['packed']:.4f}"
        lines.append([row["model"], f"`{row['scheme']}`", f"{row['packed']:.2f}", f"{row['integer']:.2f}", ratio, size])
    headings = ("model", "scheme", "packed", "integers", "ratio", "flash / RAM of the C program, kB")
    return table(headings, lines)


def readme() -> dict[str, str]:
    """The row of README: the core without a multiplier."""
    return {"small processors": gains_table([row for row in CORES.read()["rows"] if row["core"] == BARREL])}


def document() -> dict[str, str]:
    """The tables of docs/hardware.md."""
    cores, model = CORES.read(), MODEL.read()
    return {
        "gains": gains_table(cores["rows"]),
        "cycles": kernels_table(cores["rows"], "cycles", pico=True),
        "cycles of others": kernels_table(cores["rows"], "cycles"),
        "instructions": kernels_table(cores["rows"], "instructions"),
        "token": token_table(cores["rows"]),
        "integer perplexity": perplexity_table(model["rows"]),
        "goals": goals_table([*cores["goals"], *model["goals"]]),
    }
