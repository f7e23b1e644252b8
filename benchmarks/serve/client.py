"""Clients of a server, all in one event loop, by the HTTP that the task needs and no more."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Streamed:
    """A text as it came: when each piece of it did, in seconds after it was asked for, and how many tokens it has."""

    times: list[float]
    tokens: int


async def whole(address: str, prompt: str, tokens: int) -> int:
    """How many tokens a text had: ``tokens``, for it does not end before."""
    body = b"".join([line async for line in _lines(address, _asked(prompt, tokens))])
    found: int = json.loads(body)["usage"]["completion_tokens"]
    return found


async def streamed(address: str, prompt: str, tokens: int) -> Streamed:
    """A text by server-sent events."""
    began, times, count = time.perf_counter(), [], 0
    async for line in _lines(address, _asked(prompt, tokens) | {"stream": True, "stream_options": {"include_usage": True}}):
        if line.startswith(b"data: {"):
            event = json.loads(line.removeprefix(b"data: "))
            if event["choices"]:
                times.append(time.perf_counter() - began)
            if event.get("usage"):
                count = event["usage"]["completion_tokens"]
    return Streamed(times, count)


def total(address: str, prompts: Sequence[str], tokens: int) -> float:
    """Tokens per second of all texts together, none of them streamed."""

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*(whole(address, prompt, tokens) for prompt in prompts)))

    began = time.perf_counter()
    made = asyncio.run(all_of_them())
    return made / (time.perf_counter() - began)


def _asked(prompt: str, tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


async def _lines(address: str, asked: dict[str, Any]) -> AsyncIterator[bytes]:
    """Lines of the answer's body; sizes of chunks are lines too, which nobody takes for data."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{address}: {status.decode().strip()}: {(await reader.read()).decode()}")
    while (await reader.readline()).strip():
        pass
    async for line in reader:
        if "stream" in asked or line.startswith(b"{"):
            yield line
    writer.close()
