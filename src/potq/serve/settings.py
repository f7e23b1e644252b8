"""What a server is told when it starts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from potq.validation import Strict

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class ServerSettings(Strict):
    """How a server listens, and what it bears.

    Attributes:
        host: the address to listen at; "0.0.0.0" is all.
        port: 0 takes a free one.
        slots: texts that are computed at once.
        waiting: texts that may be under way or wait; more are refused with 429.
        cache_bytes: the most memory for keys and values.
        api_keys: of which a request has to bear one; none: everybody is served.
        origins: of web pages that may use the server (CORS), "*" for all.
        head_bytes: of a request's address and headers, at most.
        body_bytes: of a request, at most.
        connections: at once, at most; beyond them those go that said nothing for longest, of the address with most such.
        patience: seconds in which a client has to send its request.
        drain: seconds that texts under way have to end when the server is told to stop.

    Raises:
        ConfigError: a value out of range.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, lt=65536)] = 8000
    slots: Annotated[int, Field(ge=1, le=64)] = 16
    waiting: Positive = 256
    cache_bytes: Positive | None = None
    api_keys: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    origins: tuple[str, ...] = ()
    head_bytes: Positive = 64 << 10
    body_bytes: Positive = 8 << 20
    connections: Positive = 4096
    patience: Seconds = 10.0
    drain: Seconds = 30.0
