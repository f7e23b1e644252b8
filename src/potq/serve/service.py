"""One served model: its scheduler's thread, its tokenizer, its figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from potq.engine.scheduler import Scheduler
from potq.serve.answers import Answer
from potq.serve.failures import RequestError
from potq.serve.metrics import Clock, Metrics
from potq.serve.prompts import Prompts
from potq.serve.structure import Vocabulary
from potq.serve.worker import Job, Worker

if TYPE_CHECKING:
    from potq.engine.engine import Engine
    from potq.serve.settings import ServerSettings


class Service:
    """A model that is served.

    Args:
        engine: an open engine, which belongs to the service from now on.
        name: the model's, for clients.
        settings: the server's.

    Attributes:
        draining: new requests are refused, since the server is about to end.

    Raises:
        CheckpointError: the model has no tokenizer.
        EngineError: its tokenizer is in pure Python.
    """

    def __init__(self, engine: Engine, name: str, settings: ServerSettings) -> None:
        self.name, self.created = name, int(time.time())
        self.draining = False
        self.context = engine.context
        self._engine = engine
        self._scheduler = Scheduler(engine, slots=settings.slots, cache_bytes=settings.cache_bytes)
        self.prompts = Prompts(engine.tokenizer, engine.vocabulary)
        self.vocabulary = Vocabulary(engine.tokenizer, engine.vocabulary, engine.end_tokens)
        self.worker = Worker(self._scheduler, waiting=settings.waiting)
        self.metrics = Metrics(self.worker)

    def check_model(self, name: str | None) -> None:
        """Refuse a request for another model.

        Raises:
            RequestError: it is not served (404).
        """
        if name is not None and name != self.name:
            raise RequestError(f"there is no model {name!r} here; {self.name!r} is served", status=404, param="model")

    async def write(self, jobs: Sequence[Job], stops: Sequence[str]) -> Answer:
        """Begin the texts of a request.

        Raises:
            RequestError: too many texts wait (429), or the engine stopped (503).
        """
        streams = await self.prompts.run(lambda: [self.prompts.stream(job.tokens, stops) for job in jobs])
        batch = self.worker.submit(jobs)
        tokens = sum(len(job.tokens) for job in jobs)
        self.metrics.prompt_tokens.inc(tokens)
        return Answer(batch, streams, Clock(self.metrics, len(jobs)), tokens)

    async def close(self) -> None:
        """End all texts, and the engine."""
        await self.worker.stop()
        self.prompts.close()
        self._engine.close()
