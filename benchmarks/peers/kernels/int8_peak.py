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

STEPS = 2_000_000  # dot products of a chain: a few milliseconds
RUNS = 25


def int8_peak(pairs: int = 16) -> float | None:
    """Operations per second in units of 1e9 (a multiply-add is two), or None without a C++ compiler that can build it.

    ``pairs``, 1, 2 or 16, is how many pairs are added in 16 bits before sums are made wider, where (AVX2) that
    costs an instruction; 16 is a roof for whatever is multiplied.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "int8_peak.so")
        source = Path(__file__).with_suffix(".cpp")
        flags = ["-O3", *compiler_flags(), "-fopenmp", "-shared", "-fPIC"]
        if subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=False, capture_output=True).returncode:
            return None
        return _measure(ctypes.CDLL(str(library)).int8_peak, pairs)


def _measure(probe: ctypes._NamedFuncPointer, pairs: int) -> float:
    probe.restype, probe.argtypes = ctypes.c_double, (ctypes.c_int64, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    steps = STEPS // pairs
    probe(steps, THREADS, 1, pairs)  # starts the threads
    rates = []
    for run in range(RUNS):
        began = time.perf_counter()
        operations = float(probe(steps, THREADS, run, pairs))
        rates.append(operations / (time.perf_counter() - began) / 1e9)
    return max(rates)  # a roof: what disturbs only lowers it
