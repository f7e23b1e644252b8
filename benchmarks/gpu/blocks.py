"""Times of potq's GPU kernels by the size of their blocks: ``python -m benchmarks.gpu.blocks`` (one GPU).

Every kernel in bfloat16, on two shapes, with every choice of rows, columns and warps of a program that is worth a try.
:mod:`potq.kernels.triton.product` and :mod:`~potq.kernels.triton.dequantize` have the choices that came out of it. Kernels
are compiled by several processes first; ``--minutes`` ends the timing early.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import product

import torch

from benchmarks.common.goals import Row
from benchmarks.gpu.goals import BLOCKS
from benchmarks.gpu.kernels import Shape, random_weight
from benchmarks.gpu.timing import timed
from potq.kernels.triton.dequantize import Blocks, launch
from potq.kernels.triton.product import GemmBlocks, GemvBlocks, gemm, gemv
from potq.kernels.triton.weight import GpuWeight
from potq.kernels.weight import PackedWeight

SHAPES: tuple[Shape, ...] = ((8192, 28672), (4096, 4096))
REPETITIONS = 10
PROTOCOL = {
    "group": 64,
    "dtype": "bfloat16",
    "repetitions": REPETITIONS,
    "time": "as in gpu_kernels; products without their finish",
}
Case = tuple[str, int, str, Shape, Blocks | GemvBlocks | GemmBlocks]  # work, rows of activations, grid, shape, blocks


def cases() -> Iterator[Case]:
    """Every choice, the largest shape first."""
    for shape in SHAPES:
        for blocks in product((1, 4, 8), (64, 128), (2, 4), (4, 16)):
            yield from (("gemv", 1, grid, shape, GemvBlocks(*blocks)) for grid in ("pot4", "pot3"))
        for parts in product((64, 128, 256), (1, 2, 4, 8), (2, 4, 8)):
            yield from (("dequantize", 0, grid, shape, Blocks(*parts)) for grid in ("pot4", "pot2"))
        for m, rows, columns, warps, stages, programs in product((16, 256), (64, 128), (32, 64), (4, 8), (2, 4), (4,)):
            yield "gemm", m, "pot4", shape, GemmBlocks(min(m, 64), rows, columns, warps, stages, programs)


@lru_cache(maxsize=1)
def weight_of(grid: str, shape: Shape) -> GpuWeight:
    """A random one; the last is kept."""
    return GpuWeight.of(PackedWeight.of(random_weight(grid, shape, "cuda")))


def call_of(case: Case) -> Callable[[], None]:
    """What is timed: the one kernel."""
    _, m, grid, shape, blocks = case
    weight = weight_of(grid, shape)
    if isinstance(blocks, Blocks):
        return launch(weight, torch.empty(shape, dtype=torch.bfloat16, device="cuda"), blocks=blocks).run
    x = torch.randn(m, shape[1], device="cuda").bfloat16()
    return (gemv(x, weight, blocks) if isinstance(blocks, GemvBlocks) else gemm(x, weight, blocks))[0].run


def compile_all(part: list[Case]) -> None:
    """Run each once, so that Triton's cache on disk has it. What fails here fails again when it is timed, and says why."""
    for case in part:
        with suppress(Exception):
            call_of(case)()
    torch.cuda.synchronize()


def row_of(case: Case) -> Row:
    work, m, grid, shape, blocks = case
    row: Row = {"work": work, "m": m, "grid": grid, "shape": f"{shape[0]}x{shape[1]}", **blocks._asdict()}
    return row | timed(call_of(case), REPETITIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="how long to time at most; default: to the end")
    parser.add_argument("--processes", type=int, default=8, help="that compile")
    arguments = parser.parse_args()
    every = sorted(cases(), key=lambda case: (SHAPES.index(case[3]), case[0], case[2]))  # a weight is made once
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        pool.map(compile_all, [every[start :: arguments.processes] for start in range(arguments.processes)])
    end, rows = time.monotonic() + 60 * arguments.minutes, []
    for case in every:
        if time.monotonic() < end:
            rows.append(row_of(case))
    BLOCKS.write(PROTOCOL, rows)
    done = [row for row in rows if "skipped" not in row]
    print(f"{len(rows) - len(done)} of {len(rows)} choices failed")
    for work, m, grid, shape in dict.fromkeys((row["work"], row["m"], row["grid"], row["shape"]) for row in done):
        here = [row for row in done if (row["work"], row["m"], row["grid"], row["shape"]) == (work, m, grid, shape)]
        for row in sorted(here, key=lambda row: float(row["microseconds"]))[:3]:
            print(row, flush=True)


if __name__ == "__main__":
    main()
