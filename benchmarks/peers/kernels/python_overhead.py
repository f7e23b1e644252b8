"""What Python adds to a product: a module's call with a tiny weight, less the native call inside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.peers.kernels.ours import Ours
from benchmarks.peers.kernels.peer import Case
from benchmarks.peers.packages import THREADS
from potq.nn.packed import pack_module
from potq.numerics.scheme import QuantScheme
from potq.ptq.algorithms.rtn import rtn

SIZE = 64
CALLS, RUNS = 500, 9


def python_overhead() -> dict[str, float]:
    """Microseconds: of a ``PoTLinear`` call, of the same product in a native call, of an ``nn.Linear`` call.

    Raises:
        UnavailableError: there is no compiled library.
    """
    torch.set_num_threads(THREADS)
    linear = nn.Linear(SIZE, SIZE, bias=False)
    x = torch.randn(1, SIZE)
    with torch.inference_mode():
        plain = _microseconds(lambda: linear(x))
        packed = pack_module(linear, rtn(linear.weight.detach(), QuantScheme("pot4")))
        module = _microseconds(lambda: packed(x))
        work = Ours("pot4").prepare(Case(SIZE, SIZE, 1), 100, 0)
        native = _microseconds(work.run, CALLS // 100) / 100
    return {"module_us": module, "native_us": native, "python_us": module - native, "torch_linear_us": plain}


def _microseconds(call: Callable[[], object], calls: int = CALLS) -> float:
    """Median over runs of the time of one call."""
    times = []
    for _ in range(RUNS + 1):  # the first warms up
        began = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - began) / calls * 1e6)
    return statistics.median(times[1:])
