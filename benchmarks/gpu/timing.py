"""Times on a GPU: of the work alone, from CUDA graphs with a cold second-level cache, and of the calls that launch it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.common.goals import Row

_FLUSH = 2**28  # bytes read between repetitions: several times any second-level cache


def microseconds(call: Callable[[], object], repetitions: int = 30) -> list[float]:
    """Time on the GPU of every repetition of ``call``, replayed from a graph; the cache is flushed before each.

    By reading: lines that were written would be written back while ``call`` runs.
    """
    call()  # compiles, arranges
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    trash = torch.zeros(_FLUSH // 8, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    events = [(_event(), _event()) for _ in range(repetitions)]
    for start, end in events:
        trash.sum()
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) for start, end in events]


def timed(call: Callable[[], object], repetitions: int = 30) -> Row:
    """Median and best of :func:`microseconds`; or why there is none: a kernel that does not compile ends no run."""
    try:
        times = microseconds(call, repetitions)
    except Exception as error:
        return {"skipped": f"{type(error).__name__}: {error}"}
    return {"microseconds": statistics.median(times), "best": min(times)}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def launch_microseconds(call: Callable[[], object], calls: int = 100) -> float:
    """Time on the CPU of one call, which does not wait for the GPU: median of ``calls``."""
    times = []
    for _ in range(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return statistics.median(times)
