"""A server or an engine in a process of its own: ``python -m benchmarks.serve.contestant potq|llama.cpp|engine MODEL``.

The first line of its output is the server's address. The engine alone reads a number of texts on standard input, and answers
with the seconds and tokens that they took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.packages import THREADS, optional

CONTEXT, SLOTS = 2048, 16


def potq(model: str) -> None:
    from potq import Engine
    from potq.serve.server import Server, listen
    from potq.serve.service import Service
    from potq.serve.settings import ServerSettings

    settings = ServerSettings(port=0, slots=SLOTS, drain=1)
    listening = listen(settings)
    service = Service(Engine(model, threads=THREADS, context=CONTEXT), Path(model).name, settings)
    _tell(f"127.0.0.1:{listening.getsockname()[1]}")
    Server(service, settings, listening, lambda: None).run()


def llama(model: str) -> None:
    lib = optional("xllamacpp", "xllamacpp")
    params = lib.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = model, CONTEXT * SLOTS, SLOTS
    params.n_gpu_layers, params.verbosity, params.cache_ram_mib, params.port = 0, -1, 0, 0
    for each in (params.cpuparams, params.cpuparams_batch):
        each.n_threads = THREADS
    server = lib.Server(params)
    _tell(server.listening_address.removeprefix("http://"))
    sys.stdin.read()


def engine(model: str) -> None:
    """The scheduler alone: what the server is compared with."""
    from potq import Engine
    from potq.engine.scheduler import Scheduler

    opened = Engine(model, threads=THREADS, context=CONTEXT)
    scheduler = Scheduler(opened, slots=SLOTS)
    _tell("ready")
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        began, tokens = time.perf_counter(), 0
        for prompt in asked["prompts"]:
            scheduler.submit(opened.encode(prompt), max_new=asked["tokens"], stop_tokens=())
        while not scheduler.idle:
            tokens += sum(event.token is not None for event in scheduler.step())
        _tell(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens}))


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    {"potq": potq, "llama.cpp": llama, "engine": engine}[sys.argv[1]](sys.argv[2])
