"""Servers as tests run them: in a thread of this process."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potq import Engine
from potq.serve.server import Server, listen
from potq.serve.service import Service
from potq.serve.settings import ServerSettings

ASK = [{"role": "user", "content": "the cat"}]


@dataclass
class Live:
    """A server that listens at ``url``."""

    url: str
    service: Service
    server: Server

    def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        """Status and answer of a request; ``body`` is JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask(urllib.request.Request(self.url + path, content, {"content-type": "application/json", **headers}))

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self._ask(urllib.request.Request(self.url + path, headers=headers))

    def refused(self, status: int, path: str, body: object) -> str:
        """The message of a request that is refused, in the API's form."""
        found, answer = self.post(path, body)
        assert found == status, answer
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        return str(answer["error"]["message"])

    def _ask(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, _read(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _read(error.read())


def _read(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode()


@contextmanager
def live(folder: Path, *, context: int | None = None, **settings: Any) -> Iterator[Live]:
    """A server of ``folder`` while the block runs."""
    chosen = ServerSettings(**{"port": 0, "slots": 4, "drain": 5.0, **settings})
    service = Service(Engine(folder, threads=1, context=context), folder.name, chosen)
    listening, ready = listen(chosen), threading.Event()
    server = Server(service, chosen, listening, ready.set)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}", service, server)
    finally:
        service.draining = True
        thread.join(60)
        assert not thread.is_alive()


def wait_until(true: Any, seconds: float = 30) -> None:
    """Until ``true()`` is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
