"""Commands in processes of their own: seconds, and the most memory that they had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

_EVERY = 0.2  # seconds between two looks at the memory


@dataclass(frozen=True)
class Watched:
    """What a command took, its children counted.

    Attributes:
        seconds: from start to end.
        resident: bytes in memory at most, at one time: files that are mapped count as far as they are there.
        private: the same without files.
        said: what it printed on stdout.
        told: what it printed on stderr.
    """

    seconds: float
    resident: int
    private: int
    said: str
    told: str

    def json(self) -> dict[str, Any]:
        """stdout as JSON."""
        found: dict[str, Any] = json.loads(self.said)
        return found


def potq(*words: object) -> list[str]:
    return [sys.executable, "-m", "potq", *map(str, words)]


def watched(command: Sequence[str], *, threads: int, folder: Path, **environment: str) -> Watched:
    """Run ``command`` with so many ``threads`` a process; ``folder`` is for what it prints.

    Raises:
        SystemExit: it failed.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
    most = {"resident": 0, "private": 0}
    began = time.perf_counter()
    with (folder / "stdout").open("w+b") as out, (folder / "stderr").open("w+b") as errors:
        with subprocess.Popen(command, stdout=out, stderr=errors, env=variables) as process:
            while process.poll() is None:
                for key, value in _memory(process.pid).items():
                    most[key] = max(most[key], value)
                time.sleep(_EVERY)
        seconds = time.perf_counter() - began
    said, told = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr"))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{told[-2000:]}")
    return Watched(seconds, most["resident"], most["private"], said, told)


def _memory(pid: int) -> Mapping[str, int]:
    """Of a process and its children; what they share is counted in each."""
    total = {"resident": 0, "private": 0}
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            info = each.memory_info()
            total["resident"] += info.rss
            total["private"] += info.rss - getattr(info, "shared", 0)
    except psutil.NoSuchProcess:  # it has just ended
        pass
    return total
