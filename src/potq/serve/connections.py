"""Connections: clients that send nothing, heads that are too big, what is no HTTP."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from potq.serve.failures import error_response
from potq.serve.metrics import Metrics
from potq.serve.settings import ServerSettings

_PER_HEADER = 4  # bytes of a header beside its name and value: a colon, a space, an end of line


class _TooBig(Exception):  # noqa: N818 - never seen outside: the parser ends at it
    pass


class Bounded(HttpToolsProtocol):
    """uvicorn's protocol, which takes heads of any size, with a bound; and errors in the API's form, which count.

    The head is what is parsed of it, trailers included, so that a body in the same chunk plays no part. Of a header that
    does not end the parser tells nothing; so chunks of which it tells nothing are added up.
    """

    settings: ServerSettings
    metrics: Metrics
    _head = _untold = 0  # bytes

    def data_received(self, data: bytes) -> None:
        self._untold += len(data)
        super().data_received(data)
        if self._untold > self.settings.head_bytes and not self.transport.is_closing():
            self._refuse(431)

    def on_message_begin(self) -> None:
        self._head = self._untold = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + _PER_HEADER)
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._untold = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(431 if self._head > self.settings.head_bytes else 400)

    def _unsupported_upgrade_warning(self) -> None:
        """Without uvicorn's, which asks for packages: the request is served as any other."""

    def _count(self, read: int) -> None:
        self._head, self._untold = self._head + read, 0
        if self._head > self.settings.head_bytes:
            raise _TooBig

    def _refuse(self, status: int) -> None:
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:  # not amid an answer
            self.metrics.requests.labels("other", str(status)).inc()
            big = f"the head of the request is too big; at most {self.settings.head_bytes} bytes are read"
            answer = error_response(big if status == 431 else "this is no HTTP request", status)
            lines = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
            head = b"".join(b"%b: %b\r\n" % line for line in lines)
            self.transport.write(STATUS_LINE[status] + head + b"\r\n" + bytes(answer.body))
        self.transport.close()


def protocol(settings: ServerSettings, metrics: Metrics) -> type[asyncio.Protocol]:
    """The protocol of all connections of a server, which sends away clients that say nothing for too long.

    Of too many connections one goes of the address that has most silent ones: a crowd does not drive out others.
    """
    most = min(settings.connections, _files() // 2)
    silent: dict[str, dict[Impatient, asyncio.TimerHandle]] = {}  # by address: whose request has not come, oldest first
    leaving: set[Impatient] = set()  # sent away, but not gone yet

    class Impatient(Bounded):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()
            if len(self.connections) - len(leaving) > most:
                crowd = max(silent.values(), key=len)
                next(iter(crowd))._send_away()

        def connection_lost(self, exc: Exception | None) -> None:
            self._heard()
            leaving.discard(self)
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._wait()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._heard()
            super().on_headers_complete()

        def _wait(self) -> None:
            self._heard()
            silent.setdefault(self._address, {})[self] = self.loop.call_later(settings.patience, self.transport.close)

        def _heard(self) -> None:
            here = silent.get(self._address, {})
            if (timer := here.pop(self, None)) is not None:
                timer.cancel()
            if not here:
                silent.pop(self._address, None)

        def _send_away(self) -> None:
            self._heard()
            leaving.add(self)
            self.transport.close()

        @property
        def _address(self) -> str:
            return self.client[0] if self.client else ""  # of a socket that is already closed nobody knows whose it was

    Impatient.settings, Impatient.metrics = settings, metrics
    return Impatient


def _files() -> int:
    """How many files and connections the process may have, after it asked for all that it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
