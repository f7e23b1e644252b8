"""A server of a tiny model, and clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from potq import native

if TYPE_CHECKING:
    from serve_helpers import Live


@pytest.fixture(scope="session")
def chat_folder(chat_folder: Path) -> Path:
    """The tiny packed model that chats; the server wants the engine."""
    if reason := native.missing():
        pytest.skip(reason)
    return chat_folder


@pytest.fixture(scope="session")
def server(chat_folder: Path) -> Iterator[Live]:
    """A server of it, for all tests that leave it as it was."""
    from serve_helpers import live

    with live(chat_folder) as found:
        yield found


@pytest.fixture
def client(server: Live) -> Iterator[Any]:
    """The official client."""
    openai = pytest.importorskip("openai", reason="the official client; pip install openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no text is under way: what a client left was cancelled."""
    yield
    if "server" in request.fixturenames:
        worker = request.getfixturevalue("server").service.worker
        until = time.monotonic() + 20
        while worker.open_texts and time.monotonic() < until:
            time.sleep(0.01)
        assert worker.open_texts == 0
        assert threading.active_count() < 64
