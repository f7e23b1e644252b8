"""A server under load with faults: honest texts stay as they are alone, memory stays flat, and nothing is logged.

Some seconds of it, or ``POTQ_LOAD_SECONDS``; ``make check-deep`` takes half an hour.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")

from faults import FAULTS, Client, Load
from serve_helpers import wait_until

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
SECONDS = float(os.environ.get("POTQ_LOAD_SECONDS", "1800" if DEEP else "4"))
MANY = 20_000  # requests after which memory is judged
GROWTH = 1.03  # of resident memory, at most, from the second quarter to the last
PROC = Path("/proc")
HARMLESS = {  # all that may be logged
    "WARNING:  Invalid HTTP request received.",
    "socket.send() raised exception.",  # asyncio's word for a client that left between two pieces
}


@contextmanager
def served(folder: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """``potq serve`` as a process, with little room, and its address."""
    options = ("--port", "0", "--threads", "1", "--slots", "4", "--cache-mb", "2")
    with (
        log.open("w") as told,
        subprocess.Popen([sys.executable, "-m", "potq", "serve", str(folder), *options], stderr=told, text=True) as process,
    ):
        try:
            wait_until(lambda: "http://" in log.read_text() or process.poll() is not None, 60)
            found = re.search(r"http://(\S+?):(\d+)", log.read_text())
            assert found is not None, log.read_text()
            yield process, (found[1], int(found[2]))
        finally:
            process.kill()


def resident(process: subprocess.Popen[str]) -> int:
    """Bytes in memory that are the process's own."""
    status = (PROC / str(process.pid) / "status").read_text()
    [found] = re.findall(r"RssAnon:\s+(\d+) kB", status)
    return int(found) << 10


def room_for_connections() -> int:
    """How many the crowd may have, after the process asked for all that it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(100, min(10_000, hard - 1_000))


@pytest.mark.skipif(not PROC.exists(), reason="memory is looked up in /proc")
def test_a_load_with_faults(chat_folder: Path, tmp_path: Path) -> None:
    log, seen = tmp_path / "log", []
    with served(chat_folder, log) as (process, address):
        load = Load(address, silent=room_for_connections() if SECONDS > 60 else 200)
        load.run(SECONDS, lambda requests: seen.append((requests, resident(process))))
        print(load.counts, seen)
        assert load.counts["honest"] > 0
        client = Client(address, 1)
        wait_until(lambda: idle(client))
        assert client.ask("GET", "/health")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert set(log.read_text().splitlines()[1:]) <= HARMLESS
    if load.requests > MANY:
        before, after = (median(memory for _, memory in part) for part in (seen[5:10], seen[15:]))
        assert after < GROWTH * before, seen
    if DEEP:
        assert load.requests > MANY
        assert all(load.counts[fault.__name__] for fault in FAULTS)


def idle(client: Client) -> bool:
    """Whether no text is under way, and no page of the cache in use."""
    page = client.ask("GET", "/metrics")[1].decode()
    names = ("potq_texts_running", "potq_texts_waiting", "potq_cache_pages_used")
    return all(float(re.findall(rf"^{name} (\S+)", page, re.MULTILINE)[0]) == 0 for name in names)
