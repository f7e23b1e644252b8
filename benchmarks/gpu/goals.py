"""What the GPU kernels are to reach, from rows alone."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Goal, Row, at_least
from benchmarks.common.results import Benchmark

POT, UNIFORM = {2: "pot2", 3: "pot3", 4: "pot4"}, {2: "int2", 3: "int3", 4: "int4"}  # by bits
LARGEST = "8192x28672"
COPY = 0.85  # of the bandwidth of a copy
AGAINST_CUBLAS = ((1, LARGEST, 3.2), (1, "11008x4096", 2.5), (1, "4096x4096", 1.8), (16, LARGEST, 2.0))


def kernels(rows: Sequence[Row]) -> list[Goal]:
    """The figures this project set itself, in bfloat16; one whose rows are missing counts as missed."""
    timed = {_key(row): row for row in rows if row["dtype"] == "bfloat16" and "microseconds" in row}

    def faster(m: int, shape: str, contestant: str, other: str) -> float | None:
        ours, theirs = timed.get(("product", m, shape, contestant)), timed.get(("product", m, shape, other))
        return None if ours is None or theirs is None else float(theirs["microseconds"] / ours["microseconds"])

    found: list[tuple[str, float, float | None]] = []
    for name in ("pot2", "pot3", "pot4"):
        found.append((f"{name} dequantization, part of copy bandwidth, worst shape", COPY, _part(rows, name)))
    for m, shape, target in AGAINST_CUBLAS:
        found.append((f"m={m}, pot4, times faster than cuBLAS, {shape}", target, faster(m, shape, "pot4", "cuBLAS")))
    found.append((f"m=1, pot3, times faster than pot4, {LARGEST}", 1.0, faster(1, LARGEST, "pot3", "pot4")))
    return [at_least(*each) for each in found]


def _key(row: Row) -> tuple[str, int | None, str, str]:
    return row["work"], row.get("m"), row["shape"], row["contestant"]


def _part(rows: Sequence[Row], name: str) -> float | None:
    """The least part of the copy's bandwidth that dequantization of ``name`` reaches."""
    speeds = {
        (row["shape"], row["dtype"], row["contestant"]): row["GB/s"]
        for row in rows
        if row["work"] == "dequantize" and "GB/s" in row
    }
    parts = [speed / speeds[shape, dtype, "copy"] for (shape, dtype, who), speed in speeds.items() if who == name]
    return min(parts, default=None)


def instructions(rows: Sequence[Row]) -> list[Goal]:
    """PoT needs fewer instructions to decode a weight than the best uniform form, published or not, at sm_90."""
    found: list[Goal] = []
    for which, forms in (("published uniform form", ("potq", "magic")), ("uniform form", ("potq", "magic", "fused"))):
        for bits, grid in POT.items():
            for dtype in ("float16", "bfloat16"):
                cell = [row for row in rows if (row["capability"], row["dtype"], row["bits"]) == (90, dtype, bits)]
                uniform = min(r["decoding_per_weight"] for r in cell if r["grid"] == UNIFORM[bits] and r["form"] in forms)
                pot = min(r["decoding_per_weight"] for r in cell if r["grid"] == grid and r["form"] == "potq")
                name = f"{grid}, {dtype}: instructions of decoding a weight, below the best {which}"
                found.append(Goal(name=name, target=round(uniform, 3), measured=round(pot, 3), met=pot < uniform))
    return found


KERNELS = Benchmark("gpu_kernels", kernels, timed="gpu", packages=("triton", "bitsandbytes", "gemlite", "marlin"))
INSTRUCTIONS = Benchmark("gpu_instructions", instructions, packages=("triton",))
BLOCKS = Benchmark("gpu_blocks", lambda _: [], timed="gpu", packages=("triton",))
BENCHMARKS = (KERNELS, INSTRUCTIONS, BLOCKS)
