"""The compute roof: int8 multiply-adds per second out of registers, by a small C++ loop.

It is compiled for this processor, or for the instruction set that is forced.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.forced import compiler_flags
from benchmarks.peers.packages import THREADS

STEPS = 2_000_000  # a few milliseconds
RUNS = 25


def int8_peak() -> float | None:
    """Operations per second in units of 1e9 (a multiply-add is two), or None without a C++ compiler that can build it."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "int8_peak.so")
        source = Path(__file__).with_suffix(".cpp")
        flags = ["-O3", *compiler_flags(), "-fopenmp", "-shared", "-fPIC"]
        if subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=False, capture_output=True).returncode:
            return None
        return _measure(ctypes.CDLL(str(library)).int8_peak)


def _measure(probe: ctypes._NamedFuncPointer) -> float:
    probe.restype, probe.argtypes = ctypes.c_double, (ctypes.c_int64, ctypes.c_int, ctypes.c_int)
    probe(STEPS, THREADS, 1)  # starts the threads
    rates = []
    for run in range(RUNS):
        began = time.perf_counter()
        operations = float(probe(STEPS, THREADS, run))
        rates.append(operations / (time.perf_counter() - began) / 1e9)
    return max(rates)  # a roof: what disturbs only lowers it
