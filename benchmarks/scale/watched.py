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

from potq.files import write_whole

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


def watched(command: Sequence[str], *, threads: int, folder: Path, kept: Path | None = None, **environment: str) -> Watched:
    """Run ``command`` with so many ``threads`` a process; ``folder`` is for what it prints.

    What a run that is killed took until then is in the file ``kept``, and counts when it goes on.

    Raises:
        SystemExit: it failed.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
    printed = [folder / name for name in ("stdout", "stderr")]
    with (
        printed[0].open("w+b") as out,
        printed[1].open("w+b") as errors,
        subprocess.Popen(command, stdout=out, stderr=errors, env=variables) as process,
    ):
        seconds, most = _look(process, kept)
    said, told = (path.read_text(encoding="utf-8", errors="replace") for path in printed)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{told[-2000:]}")
    if kept is not None:
        kept.unlink(missing_ok=True)
    return Watched(seconds, most["resident"], most["private"], said, told)


def _look(process: subprocess.Popen[bytes], kept: Path | None) -> tuple[float, dict[str, int]]:
    """The seconds that a process took, and the most memory; with what is ``kept`` of runs before."""
    before, most = 0.0, {"resident": 0, "private": 0}
    if kept is not None and kept.exists():
        before, most = json.loads(kept.read_text(encoding="utf-8"))
    began = time.perf_counter()
    while process.poll() is None:
        found = _memory(process.pid)
        most = {key: max(most[key], found[key]) for key in most}
        if kept is not None:
            write_whole(kept, json.dumps([before + time.perf_counter() - began, most]), f"cannot keep {kept}")
        time.sleep(_EVERY)
    return before + time.perf_counter() - began, most


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
