"""The processes that are measured: started when they are first asked, asleep while others are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.serve.client import total

_WARM = 8  # tokens: the first text of a process waits for memory


@dataclass(frozen=True)
class Contestant:
    """What a process runs: its ``kind`` as ``contestant.py`` knows it, and what makes its model's file, or finds it."""

    kind: str
    file: Callable[[], Path]


class Process:
    """A process of ``contestant.py``."""

    def __init__(self, contestant: Contestant) -> None:
        command = [sys.executable, "-m", "benchmarks.serve.contestant", contestant.kind, str(contestant.file())]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept)
        self._address = self._line()
        self._process.send_signal(signal.SIGSTOP)
        if contestant.kind == "engine":
            self.alone(["It was"], _WARM)
        else:
            with self.awake() as address:
                total(address, ["It was"], _WARM)

    @contextmanager
    def awake(self) -> Iterator[str]:
        """Its address, while it runs."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield self._address
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def alone(self, prompts: list[str], tokens: int) -> float:
        """Tokens per second of an engine without a server."""
        assert self._process.stdin is not None
        with self.awake():
            print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._process.stdin, flush=True)
            found = json.loads(self._line())
        return float(found["tokens"] / found["seconds"])

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended; run it to see why")
        return line.strip()


class Processes:
    """Those of a model's contestants, by name; they end with the block."""

    def __init__(self, contestants: Mapping[str, Contestant]) -> None:
        self._contestants = contestants
        self._started: dict[str, Process] = {}

    def __getitem__(self, name: str) -> Process:
        if name not in self._started:
            self._started[name] = Process(self._contestants[name])
        return self._started[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started.values():
            process.end()
