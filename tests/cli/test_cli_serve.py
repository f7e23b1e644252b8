"""``potq serve`` as people start and end it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cli_helpers import refused
from potq import native
from potq.errors import CheckpointError, ConfigError, MissingDependencyError

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")


@pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")
def test_it_serves_until_a_signal(packed_folder: Path) -> None:
    command = [sys.executable, "-m", "potq", "serve", str(packed_folder), "--port", "0", "--threads", "1", "--name", "tiny"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if "http://" in line)
        address = re.search(r"http://\S+?:\d+", told)
        assert told.startswith("tiny at ")
        assert address is not None
        body = json.dumps({"model": "tiny", "prompt": "the cat", "max_tokens": 3}).encode()
        asked = urllib.request.Request(f"{address[0]}/v1/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def test_what_cannot_be_served(packed_folder: Path, tmp_path: Path) -> None:
    assert "none" in refused(CheckpointError, "serve", tmp_path / "none")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "choose another host or port" in refused(ConfigError, "serve", packed_folder, "--port", str(port))


def test_without_the_extra(packed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("potq.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "uvicorn: pip install 'potq[serve]'" in refused(MissingDependencyError, "serve", packed_folder)
