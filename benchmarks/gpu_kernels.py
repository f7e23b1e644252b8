"""Dequantization and products on a GPU: ``python benchmarks/gpu_kernels.py`` (one GPU, ``pip install 'potq[gpu]'``).

Dequantization of 2, 3 and 4 bits to bfloat16 and float16: power-of-two against uniform grids (with a conversion; at
2 and 4 bits also with magic numbers, ``gpu_uniform.py``) and n-term ones, beside a copy of a matrix of that size:
time, GB/s of everything read and written. Products with 1 to 256 rows of activations against cuBLAS and torch's int4 one.
The second-level cache is flushed between repetitions; what a call costs the CPU is a column apart.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import gpu_uniform
from gpu_timing import launch_microseconds, microseconds
from potq.kernels.triton import dequantize, product
from potq.kernels.triton.weight import GpuWeight
from potq.scheme import QuantScheme
from potq.tensor import QuantizedWeight
from results_io import Goal, Row, print_goals, write_results

SHAPES = ((4096, 4096), (4096, 11008), (11008, 4096), (8192, 28672))
ROWS = (1, 16, 64, 256)
GRIDS = ("pot2", "int2", "apot3", "pot3", "int3", "pot4", "int4", "apot4")
DTYPES = (torch.bfloat16, torch.float16)
PROTOCOL = {
    "group": 64,
    "repetitions": 30,
    "time": "median on the GPU, replayed from a CUDA graph; 256 MiB written before each repetition",
    "launch": "median time of an eager call on the CPU",
}
Call = Callable[[], object]


def random_weight(scheme: QuantScheme, shape: tuple[int, int]) -> QuantizedWeight:
    """Random codes under scales of 0.5 to 1.5, on the GPU: values do not matter to the time."""
    weight = QuantizedWeight.empty(shape, scheme, "cuda")
    weight.packed.random_(0, 256)
    weight.scale.uniform_(0.5, 1.5)
    return weight


def dequantizations(shape: tuple[int, int], dtype: torch.dtype) -> Iterator[tuple[str, int, Call]]:
    """Name, bytes moved, and call of every contestant."""
    out = torch.empty(shape, dtype=dtype, device="cuda")
    source = torch.empty_like(out)
    yield "copy", 2 * out.nbytes, lambda: out.copy_(source)
    for name in GRIDS:
        weight = random_weight(QuantScheme(name, group_size=64), shape)
        arranged = GpuWeight.of(weight.packed, weight.scale, weight.scheme, shape[1])
        yield name, weight.nbytes + out.nbytes, dequantize.launch(arranged, out).run
        if name in ("int2", "int4"):
            yield (
                f"{name} magic",
                weight.nbytes + out.nbytes,
                gpu_uniform.launch(weight.packed, weight.scale, weight.scheme, out).run,
            )


def products(shape: tuple[int, int], m: int, dtype: torch.dtype) -> Iterator[tuple[str, int, Call]]:
    """Name, bytes of the weight, and call of every contestant."""
    x = torch.randn(m, shape[1], dtype=dtype, device="cuda")
    dense = torch.randn(shape, dtype=dtype, device="cuda")
    yield "cuBLAS", dense.nbytes, lambda: torch.nn.functional.linear(x, dense)
    for name in GRIDS:
        weight = random_weight(QuantScheme(name, group_size=64), shape)
        arranged = GpuWeight.of(weight.packed, weight.scale, weight.scheme, shape[1])
        yield name, weight.nbytes, _product(x, arranged)
    if dtype == torch.bfloat16:
        yield "torch int4", shape[0] * shape[1] // 2, _torch_int4(x, shape)


def _product(x: Tensor, weight: GpuWeight) -> Call:
    return lambda: product.linear(x, weight, None)


def _torch_int4(x: Tensor, shape: tuple[int, int]) -> Call:
    codes = torch.randint(0, 256, (shape[0], shape[1] // 2), dtype=torch.uint8, device="cuda")
    weight = torch._convert_weight_to_int4pack(codes, 8)
    scales = torch.ones(shape[1] // 64, shape[0], 2, dtype=torch.bfloat16, device="cuda")
    return lambda: torch._weight_int4pack_mm(x, weight, 64, scales)


def measured(row: Row, moved: int, call: Call) -> Row:
    """``row`` with the times of ``call``."""
    times = microseconds(call, PROTOCOL["repetitions"])  # type: ignore[arg-type]
    middle = statistics.median(times)
    launch = launch_microseconds(call)
    print(f"{row} {middle:.1f} us, {moved / middle / 1e3:.0f} GB/s", flush=True)
    return row | {"microseconds": middle, "best": min(times), "GB/s": moved / middle / 1e3, "launch_us": launch}


def measure() -> Iterator[Row]:
    for shape in SHAPES:
        name = f"{shape[0]}x{shape[1]}"
        for dtype in DTYPES:
            what = {"shape": name, "dtype": str(dtype).removeprefix("torch.")}
            for contestant, moved, call in dequantizations(shape, dtype):
                yield measured({"work": "dequantize", **what, "contestant": contestant}, moved, call)
            for m in ROWS:
                for contestant, moved, call in products(shape, m, dtype):
                    yield measured({"work": "product", "m": m, **what, "contestant": contestant}, moved, call)


def goals(rows: list[Row]) -> list[Goal]:
    """The figures this project set itself, in bfloat16."""
    times = {(r["work"], r.get("m"), r["shape"], r["contestant"]): r for r in rows if r["dtype"] == "bfloat16"}

    def against(m: int, shape: str, contestant: str, other: str) -> float:
        return float(
            times["product", m, shape, other]["microseconds"] / times["product", m, shape, contestant]["microseconds"]
        )

    found = []
    for name in ("pot2", "pot3", "pot4"):
        cells = [("dequantize", None, f"{n}x{k}") for n, k in SHAPES]
        part = min(float(times[*cell, name]["GB/s"] / times[*cell, "copy"]["GB/s"]) for cell in cells)
        found.append((f"{name} dequantization, part of copy bandwidth, worst shape", 0.85, part))
    for m, shape, target in ((1, "8192x28672", 3.2), (1, "11008x4096", 2.5), (1, "4096x4096", 1.8), (16, "8192x28672", 2.0)):
        found.append((f"m={m}, pot4 / cuBLAS, {shape}", target, against(m, shape, "pot4", "cuBLAS")))
    found.append(("m=1, pot3 / pot4, 8192x28672", 1.0, against(1, "8192x28672", "pot3", "pot4")))
    return [{"name": name, "target": target, "measured": part, "met": part >= target} for name, target, part in found]


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA GPU; torch finds none")
    rows = list(measure())
    reached = goals(rows)
    write_results("gpu_kernels", PROTOCOL | {"gpu": torch.cuda.get_device_name()}, rows, reached, packages=("triton",))
    print_goals(reached)


if __name__ == "__main__":
    main()
