"""How many threads compute by default: as many as torch would take, without its import."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """torch's number where it is loaded, else ``MKL_NUM_THREADS`` or ``OMP_NUM_THREADS``, else the CPUs the process may use.

    Two threads of one core gain nothing, so there are no more than cores. On x86 that limits the variables too, as it does
    in torch (by MKL; ``MKL_DYNAMIC=false`` lifts it). Apple's CPUs count their fast cores alone.
    """
    if torch := sys.modules.get("torch"):
        threads: int = torch.get_num_threads()
        return threads
    asked, cores = _asked(), _cores()
    if asked is None:
        return min(_usable(), cores)
    limited = platform.machine() in ("x86_64", "AMD64") and os.environ.get("MKL_DYNAMIC", "true").lower() != "false"
    return min(asked, cores) if limited else asked


def _asked() -> int | None:
    for variable in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        number = re.match(r"\s*0*([1-9]\d*)", os.environ.get(variable, ""))  # of 4,2 the outermost
        if number:
            return int(number[1])
    return None


def _usable() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _cores() -> int:
    """Physical cores; logical ones where the system does not tell."""
    if sys.platform == "darwin":
        return _fast_cores()
    files = _TOPOLOGY.glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({file.read_text(encoding="ascii") for file in files}) or os.cpu_count() or 1


def _fast_cores() -> int:
    count, size = ctypes.c_int32(), ctypes.c_size_t(4)
    found = ctypes.CDLL(None).sysctlbyname(b"hw.perflevel0.physicalcpu", ctypes.byref(count), ctypes.byref(size), None, 0)
    return count.value if found == 0 and count.value > 0 else os.cpu_count() or 1
