"""Clients of a server, all in one event loop, by the HTTP that the task needs and no more."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any


async def whole(address: str, prompt: str, tokens: int) -> int:
    """How many tokens a text of up to ``tokens`` had."""
    body = b"".join([line async for line in _lines(address, _asked(prompt, tokens, stream=False))])
    found: int = json.loads(body)["usage"]["completion_tokens"]
    return found


async def times(address: str, prompt: str, tokens: int) -> list[float]:
    """When each token of a text came, in seconds after it was asked for."""
    began = time.perf_counter()
    found = []
    async for line in _lines(address, _asked(prompt, tokens, stream=True)):
        if line.startswith(b"data: {"):
            found.append(time.perf_counter() - began)
    return found


def total(address: str, prompts: Sequence[str], tokens: int) -> float:
    """Tokens per second of all texts together."""

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*(whole(address, prompt, tokens) for prompt in prompts)))

    began = time.perf_counter()
    made = asyncio.run(all_of_them())
    return made / (time.perf_counter() - began)


def _asked(prompt: str, tokens: int, *, stream: bool) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}


async def _lines(address: str, asked: dict[str, Any]) -> Any:
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
        if asked["stream"] or line.startswith(b"{"):
            yield line
    writer.close()
