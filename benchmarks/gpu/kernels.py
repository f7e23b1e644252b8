"""Dequantization and products on a GPU: ``python -m benchmarks.gpu.kernels`` (one GPU, ``pip install 'potq[gpu]'``).

``--minutes`` ends it early, what the goals are about being measured first; rows that are left out are not in the file.

Dequantization of 2, 3 and 4 bits to bfloat16 and float16: power-of-two against uniform grids (converted, with magic numbers,
fused: ``gpu/forms.py``) and n-term ones, beside a copy of a matrix of that size: time, GB/s of everything read and written.
Products with 1 to 256 rows of activations against cuBLAS and other people's 4-bit ones (``gpu/peers.py``). The second-level
cache is flushed between repetitions; what a call costs the CPU is a column apart.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product, takewhile

import torch

from benchmarks.common.goals import Row, print_goals
from benchmarks.gpu import forms as gpu_forms
from benchmarks.gpu.goals import KERNELS
from benchmarks.gpu.peers import peers
from benchmarks.gpu.plot import draw
from benchmarks.gpu.timing import launch_microseconds, timed
from potq.kernels.triton import dequantize
from potq.kernels.triton.product import linear
from potq.kernels.triton.weight import GpuWeight
from potq.kernels.weight import PackedWeight
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight

Shape = tuple[int, int]
SHAPES: tuple[Shape, ...] = ((8192, 28672), (4096, 4096), (11008, 4096), (4096, 11008))
ROWS = (1, 16, 64, 256)
GRIDS = ("pot2", "int2", "apot3", "pot3", "int3", "pot4", "int4", "apot4")
OTHER_FORMS = {"pot": ("add",), "int": ("magic", "fused")}  # by the family of grids
DTYPES = (torch.bfloat16, torch.float16)
REPETITIONS = 30
PROTOCOL = {
    "group": 64,
    "repetitions": REPETITIONS,
    "time": "median on the GPU, replayed from a CUDA graph; 256 MiB read before each repetition",
    "GB/s": "of what must be read and written: codes and scales, and the matrix (dequantize); codes and scales (product)",
    "launch": "median time of an eager call on the CPU",
}
Call = Callable[[], object]
Contestant = tuple[str, int, Call]  # name, bytes moved, what is timed


def random_weight(name: str, shape: Shape, device: str) -> QuantizedWeight:
    """Random codes under scales of 0.5 to 1.5: values do not matter to the time."""
    weight = QuantizedWeight.empty(shape, QuantScheme(name, group_size=64), device)
    weight.packed.random_(0, 256)
    weight.scale.uniform_(0.5, 1.5)
    return weight


def dequantizations(shape: Shape, dtype: torch.dtype, device: str = "cuda") -> Iterator[Contestant]:
    """Every way to a matrix of ``shape``."""
    out = torch.empty(shape, dtype=dtype, device=device)
    source = torch.zeros_like(out)
    yield "copy", 2 * out.nbytes, lambda: out.copy_(source)
    for name in GRIDS:
        weight = random_weight(name, shape, device)
        moved = weight.nbytes + out.nbytes
        arranged = GpuWeight.of(PackedWeight.of(weight))
        yield name, moved, dequantize.launch(arranged, out).run
        for form in OTHER_FORMS.get(name[:3], ()):
            yield f"{name} {form}", moved, gpu_forms.launch(form, weight, out).run


def products(shape: Shape, m: int, dtype: torch.dtype, device: str = "cuda") -> Iterator[Contestant]:
    """cuBLAS and potq."""
    x = torch.randn(m, shape[1], device=device).to(dtype)
    dense = torch.randn(shape, device=device).to(dtype)
    yield "cuBLAS", dense.nbytes, lambda: torch.nn.functional.linear(x, dense)
    for name in GRIDS:
        weight = random_weight(name, shape, device)
        arranged = GpuWeight.of(PackedWeight.of(weight))
        yield name, weight.nbytes, lambda arranged=arranged: linear(x, arranged, None)  # type: ignore[misc]


def measured(row: Row, moved: int, call: Call) -> Row:
    """``row`` with the times of ``call``, or with why it has none."""
    found = timed(call, REPETITIONS)
    if "skipped" not in found:
        found |= {"GB/s": moved / found["microseconds"] / 1e3, "launch_us": launch_microseconds(call)}
    print(row, found, flush=True)
    return row | found


def measure() -> Iterator[Row]:
    """What has goals first: bfloat16, potq before its peers."""
    for dtype in DTYPES:
        for shape in SHAPES:
            what = _what(shape, dtype)
            for name, moved, call in dequantizations(shape, dtype):
                yield measured({"work": "dequantize", **what, "contestant": name}, moved, call)
            for m in ROWS:
                for name, moved, call in products(shape, m, dtype):
                    yield measured({"work": "product", "m": m, **what, "contestant": name}, moved, call)
        for shape, m in product(SHAPES, ROWS):
            for name, peer in peers(torch.randn(m, shape[1], device="cuda").to(dtype), shape):
                row = {"work": "product", "m": m, **_what(shape, dtype), "contestant": name}
                yield row | {"skipped": peer} if isinstance(peer, str) else measured(row, *peer)


def _what(shape: Shape, dtype: torch.dtype) -> Row:
    return {"shape": f"{shape[0]}x{shape[1]}", "dtype": str(dtype).removeprefix("torch.")}


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA GPU; torch finds none (gpu/instructions.py needs none)")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="how long at most; default: to the end")
    end = time.monotonic() + 60 * parser.parse_args().minutes
    rows = list(takewhile(lambda _: time.monotonic() < end, measure()))
    print_goals(KERNELS.write(PROTOCOL, rows))
    print(draw(rows, KERNELS.picture()))


if __name__ == "__main__":
    main()
