"""The one thread that owns the scheduler, and the texts of a request as the event loop sees them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from potq.engine.scheduler import Event, Mask, Scheduler, Statistics
from potq.errors import EngineError, PotqError
from potq.serve.failures import RequestError, shutting_down

if TYPE_CHECKING:
    from potq.engine.generation import Settings


@dataclass(frozen=True)
class Job:
    """What the scheduler is asked for; see :meth:`potq.engine.scheduler.Scheduler.submit`."""

    tokens: Sequence[int]
    max_new: int
    sampling: Settings
    logprobs: int = 0
    echo: int = 0
    mask: Mask | None = None
    stop_tokens: Sequence[int] | None = None


@dataclass(eq=False)
class _Text:
    """One of a batch."""

    batch: Batch
    index: int
    request: int | None = None  # the scheduler's id, once it has one
    over: bool = False  # nobody waits for more


class Batch:
    """The texts of a request, in the making.

    Events that nobody reads wait here. They are at most as many as the context has tokens, for each text.
    """

    def __init__(self, worker: Worker, texts: int) -> None:
        self.texts = [_Text(self, index) for index in range(texts)]
        self._worker = worker
        self._events: asyncio.Queue[tuple[int, Event] | PotqError] = asyncio.Queue()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """What comes, with the index of its text, until all texts have ended or were cancelled.

        Raises:
            PotqError: the scheduler refuses a job, or the engine failed. The other texts go on until :meth:`cancel`.
        """
        while not self._events.empty() or not all(text.over for text in self.texts):
            event = await self._events.get()
            if isinstance(event, PotqError):
                raise event
            if event[1].finish == "error":
                raise EngineError(event[1].message or "the engine failed")
            yield event

    def cancel(self, index: int | None = None) -> None:
        """Nobody wants the rest of a text, or of all: their places and memory are free before the next step."""
        for text in self.texts if index is None else [self.texts[index]]:
            if not text.over:
                text.over = True
                self._worker.forget(text)

    def put(self, index: int, event: Event | PotqError) -> None:
        """For the worker: what a text gets."""
        self.texts[index].over = isinstance(event, PotqError) or event.finish is not None
        self._events.put_nowait(event if isinstance(event, PotqError) else (index, event))


_Order: TypeAlias = "tuple[_Text, Job] | int | None"  # a new text, one to cancel, the end


class Worker:
    """Runs a scheduler in a thread of its own. All methods are for the thread of the event loop.

    Args:
        scheduler: which only this thread uses from now on.
        waiting: texts that may be under way or wait; more are refused.

    Attributes:
        statistics: the scheduler's after its last step.
        failure: why the engine stopped for good, if it did.
    """

    def __init__(self, scheduler: Scheduler, *, waiting: int) -> None:
        self.statistics: Statistics = scheduler.statistics
        self.failure: PotqError | None = None
        self._scheduler, self._waiting = scheduler, waiting
        self._orders: SimpleQueue[_Order] = SimpleQueue()
        self._open: set[_Text] = set()
        self._texts: dict[int, _Text] = {}
        self._thread = threading.Thread(target=self._run, name="potq-scheduler", daemon=True)

    def start(self) -> None:
        """Begin; the running event loop gets the events."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread, and with it every text that is under way."""
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join)
        self.fail(shutting_down())

    def fail(self, error: PotqError) -> None:
        """Every text that is under way or wanted later ends with ``error``, or with that of an earlier call."""
        self.failure = self.failure or error
        for text in list(self._open):
            self.forget(text)
            text.batch.put(text.index, self.failure)

    @property
    def open_texts(self) -> int:
        """Texts that are under way or wait."""
        return len(self._open)

    def submit(self, jobs: Sequence[Job]) -> Batch:
        """Queue texts, all or none.

        Raises:
            RequestError: the engine stopped (503), too many texts wait (429), or there are more than may ever (400).
        """
        if self.failure is not None:
            raise RequestError(str(self.failure), status=503)
        if len(jobs) > self._waiting:
            raise RequestError(f"{len(jobs)} texts can never be served together; {self._waiting} may be under way or wait")
        if len(self._open) + len(jobs) > self._waiting:
            raise RequestError(
                f"{len(self._open)} texts are under way or wait, of {self._waiting} that may; try again later", status=429
            )
        batch = Batch(self, len(jobs))
        self._open.update(batch.texts)
        for text, job in zip(batch.texts, jobs, strict=True):
            self._orders.put((text, job))
        return batch

    def forget(self, text: _Text) -> None:
        """For :meth:`Batch.cancel`. A text without an id is cancelled when it gets one."""
        self._open.discard(text)
        if text.request is not None:
            self._texts.pop(text.request, None)
            self._orders.put(text.request)

    def _run(self) -> None:
        try:
            while self._obey():
                events = self._scheduler.step()
                self._loop.call_soon_threadsafe(self._deliver, events, self._scheduler.statistics)
        except Exception as error:  # nobody else would hear of it: the thread would end, and every client wait
            reason = f"the engine stopped ({type(error).__name__}: {error}); restart the server"
            self._loop.call_soon_threadsafe(self.fail, RequestError(reason, status=503))

    def _obey(self) -> bool:
        """Carry out what was ordered, waiting for it while there is nothing to compute; False at the end."""
        while self._scheduler.idle or not self._orders.empty():
            order = self._orders.get()
            if order is None:
                return False
            if isinstance(order, int):
                self._scheduler.cancel(order)
            elif not order[0].over:
                self._submit(*order)
        return True

    def _submit(self, text: _Text, job: Job) -> None:
        try:
            request = self._scheduler.submit(
                job.tokens,
                max_new=job.max_new,
                sampling=job.sampling,
                stop_tokens=job.stop_tokens,
                logprobs=job.logprobs,
                echo=job.echo,
                mask=job.mask,
            )
        except PotqError as error:
            self._loop.call_soon_threadsafe(self._end, text, error)
        else:
            self._loop.call_soon_threadsafe(self._accept, text, request)

    # from here on in the event loop's thread, in the order of the calls above

    def _accept(self, text: _Text, request: int) -> None:
        text.request = request
        if text.over:
            self._orders.put(request)
        else:
            self._texts[request] = text

    def _deliver(self, events: list[Event], statistics: Statistics) -> None:
        self.statistics = statistics
        for event in events:
            if (text := self._texts.get(event.request)) is None:
                continue  # cancelled
            if event.finish is not None:
                del self._texts[event.request]
                self._open.discard(text)
            text.batch.put(text.index, event)

    def _end(self, text: _Text, error: PotqError) -> None:
        self._open.discard(text)
        text.batch.put(text.index, error)
