"""What a call costs: of ``PoTLinear`` over one of ``nn.Linear``: ``python -m benchmarks.kernels.call`` (a minute).

Modules of 64x64 take one row, so next to nothing is computed; what is, counts as cost. ``native_us`` is the library's part
of a packed module's call: arguments through ctypes, rounding, product. Time is the calling thread's own, which is where both
compute at that size, so neighbours take none of it. Both modules are called in turn, a hundred times, and every figure is
the median over the rounds.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.common.goals import Row, print_goals
from benchmarks.kernels.goals import CALL
from benchmarks.peers.packages import THREADS
from potq import native
from potq.kernels.cpu import backend
from potq.kernels.weight import PackedWeight
from potq.nn.packed import pack_module
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.rtn import rtn

SIZE, CALLS, ROUNDS = 64, 100, 300
SCHEME = "pot4"
MODES = {"inference_mode": torch.inference_mode, "no_grad": torch.no_grad, "gradients enabled": torch.enable_grad}
SHAPES = ((1, SIZE), (1, 1, SIZE))
PROTOCOL = {
    "modules": f"{SIZE}x{SIZE}, {SCHEME} and float32; no parameter wants a gradient",
    "time": f"of the calling thread; {CALLS} calls of each in turn, {ROUNDS} rounds, medians",
    "ratio": "per round, then their median",
    "threads": THREADS,
}


def measure(shape: tuple[int, ...], bias: bool, mode: str) -> Row:
    """One row: inputs of ``shape``, under ``mode``."""
    linear, x = nn.Linear(SIZE, SIZE, bias=bias).requires_grad_(False), torch.randn(shape)
    packed = pack_module(copy.deepcopy(linear), rtn(linear.weight, QuantScheme(SCHEME)))
    with MODES[mode]():
        packed(x)
        calls = {"nn": lambda: linear(x), "packed": lambda: packed(x), "native": native_call(packed.quantized, x)}
        times = interleaved(calls)
    found = {name: statistics.median(taken) for name, taken in times.items()}
    ratios = statistics.quantiles([ours / theirs for ours, theirs in zip(times["packed"], times["nn"], strict=True)], n=4)
    figures = {"potlinear_us": found["packed"], "nn_linear_us": found["nn"], "native_us": found["native"]}
    spread = {"ratio": ratios[1], "ratio_quartiles": [ratios[0], ratios[2]]}
    return {"input": list(shape), "bias": bias, "mode": mode, **figures, **spread}


def native_call(weight: QuantizedWeight, x: Tensor) -> Callable[[], object]:
    """The same product without bias, by the library alone."""
    kernel, output = backend.Kernel(PackedWeight.of(weight)), x.new_empty(SIZE)
    arguments, multiply = kernel.arguments(x, None, output, "int8"), native.library().potq_linear
    return lambda: (multiply(arguments, 1, THREADS), kernel, x, output)


def interleaved(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Microseconds of a call, by name, for every round; the first two warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 2):
        for name, call in calls.items():
            began = time.thread_time()
            for _ in range(CALLS):
                call()
            times[name].append((time.thread_time() - began) / CALLS * 1e6)
    return {name: taken[2:] for name, taken in times.items()}


def rows() -> Iterator[Row]:
    for mode in MODES:
        for bias in (False, True):
            for shape in SHAPES:
                yield measure(shape, bias, mode)


def main() -> None:
    torch.set_num_threads(THREADS)
    found = []
    for row in rows():
        found.append(row)
        figures = f"PoTLinear {row['potlinear_us']:.2f} us, nn.Linear {row['nn_linear_us']:.2f}, ratio {row['ratio']:.2f}"
        print(f"{row['input']} bias={row['bias']} {row['mode']}: {figures}", flush=True)
    print_goals(CALL.write(PROTOCOL, found))


if __name__ == "__main__":
    main()
