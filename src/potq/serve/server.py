"""The HTTP server: how it listens, and how it ends."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from potq.errors import ConfigError
from potq.serve.app import create_app
from potq.serve.connections import protocol
from potq.serve.failures import shutting_down
from potq.serve.service import Service
from potq.serve.settings import ServerSettings

_BACKLOG = 2048  # connections that wait to be accepted
_LAST_WORDS = 1  # seconds for answers that are ready but not sent when the server ends
_AT_LAST = 10  # seconds after which uvicorn ends what still computes


def listen(settings: ServerSettings) -> socket.socket:
    """A socket at the settings' address; before a model is loaded, so that an address in use is told at once.

    Raises:
        ConfigError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise ConfigError(f"cannot listen at {where} ({error.strerror}); choose another host or port") from None


class Server(uvicorn.Server):
    """Serves until a signal; then new requests get 503, texts under way end, and it does.

    Texts that the time does not suffice for end with an error, as all do at a second signal.

    Args:
        service: the model.
        settings: how to serve it.
        listening: what :func:`listen` made.
        ready: called when it serves.
    """

    def __init__(
        self, service: Service, settings: ServerSettings, listening: socket.socket, ready: Callable[[], None]
    ) -> None:
        self._service, self._drain = service, settings.drain
        self._listening, self._ready = listening, ready
        self._ends: float | None = None  # when it ends at the latest
        config = uvicorn.Config(
            create_app(service, settings),
            http=protocol(settings, service.metrics),
            ws="none",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=math.ceil(settings.patience),
            timeout_graceful_shutdown=_AT_LAST,
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end."""
        super().run(sockets or [self._listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._service.draining:
            super().handle_exit(sig, frame)
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; asked ten times a second."""
        if self._service.draining:
            self._ends = self._ends or time.monotonic() + self._drain
            if not self.server_state.tasks or time.monotonic() > self._ends:  # a request is one, its prompt's encoding too
                self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what is under way, with an error, and then the server."""
        self._service.worker.fail(shutting_down())
        asyncio.get_running_loop().call_later(_LAST_WORDS, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        """Leave clients that do not read, or do not end their requests."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
