"""``potq.serve.worker``: texts of a scheduler that does as it is told, so that every order of things can happen."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")

from potq.engine.generation import Settings
from potq.engine.scheduler import Event, Statistics
from potq.errors import EngineError, PotqError
from potq.serve.failures import RequestError
from potq.serve.worker import Job, Worker


class Told:
    """A scheduler whose texts have one token a step, their prompt's first, until they have ``max_new``."""

    statistics = Statistics(0, 0, 0, 0, 0)

    def __init__(self) -> None:
        self.texts: dict[int, list[int]] = {}
        self.cancelled: list[int] = []
        self.may_step, self.may_submit = threading.Event(), threading.Event()
        self.may_step.set()
        self.may_submit.set()
        self.fails = False

    def submit(self, tokens: list[int], *, max_new: int, **_: Any) -> int:
        self.may_submit.wait(20)
        if tokens[0] < 0:
            raise EngineError("no such token")
        number = 1 + len(self.texts) + len(self.cancelled)
        self.texts[number] = [tokens[0], max_new]
        return number

    def step(self) -> list[Event]:
        self.may_step.wait(20)
        time.sleep(0.001)
        if self.fails:
            raise RuntimeError("on fire")
        events = []
        for number, text in list(self.texts.items()):
            text[1] -= 1
            events.append(Event(number, token=text[0], finish="length" if text[1] == 0 else None))
            if text[1] == 0:
                del self.texts[number]
        return events

    def cancel(self, request: int) -> None:
        self.cancelled.append(request)
        self.texts.pop(request, None)

    @property
    def idle(self) -> bool:
        return not self.texts


def job(token: int, most: int) -> Job:
    return Job([token], most, Settings())


def run(scenario: Callable[[Told, Worker], Coroutine[Any, Any, None]], waiting: int = 8) -> None:
    async def all_of_it() -> None:
        scheduler = Told()
        worker = Worker(scheduler, waiting=waiting)  # type: ignore[arg-type]
        worker.start()
        try:
            await asyncio.wait_for(scenario(scheduler, worker), 30)
        finally:
            scheduler.may_step.set()
            scheduler.may_submit.set()
            await worker.stop()

    asyncio.run(all_of_it())


async def until(true: Callable[[], bool]) -> None:
    while not true():  # as long as the scenario may take
        await asyncio.sleep(0.001)


async def tokens(batch: Any) -> list[tuple[int, int]]:
    return [(index, event.token) async for index, event in batch.events()]


def test_the_texts_of_a_batch() -> None:
    async def scenario(scheduler: Told, worker: Worker) -> None:
        found = await tokens(worker.submit([job(5, 2), job(6, 3)]))
        assert sorted(found) == [(0, 5)] * 2 + [(1, 6)] * 3
        assert worker.open_texts == 0

    run(scenario)


def test_a_batch_that_is_cancelled_before_it_is_heard_of() -> None:
    async def scenario(scheduler: Told, worker: Worker) -> None:
        scheduler.may_submit.clear()
        first = worker.submit([job(1, 999), job(2, 999)])
        await asyncio.sleep(0.05)  # the worker is within submit
        first.cancel()
        assert worker.open_texts == 0
        scheduler.may_submit.set()
        assert await tokens(worker.submit([job(3, 1)])) == [(0, 3)]
        await until(lambda: not scheduler.texts)

    run(scenario)


def test_a_text_that_is_cancelled_midway_leaves_the_others() -> None:
    async def scenario(scheduler: Told, worker: Worker) -> None:
        batch, found = worker.submit([job(1, 10**9), job(2, 5)]), []
        async for index, event in batch.events():
            found.append((index, event.token))
            if index == 0:
                batch.cancel(0)
        assert found.count((1, 2)) == 5
        assert worker.open_texts == 0
        await until(lambda: len(scheduler.cancelled) == 1)

    run(scenario)


def test_a_job_that_is_refused() -> None:
    async def scenario(scheduler: Told, worker: Worker) -> None:
        with pytest.raises(EngineError, match="no such token"):
            await tokens(worker.submit([job(-1, 5)]))
        assert worker.open_texts == 0

    run(scenario)


def test_too_many_texts() -> None:
    async def scenario(scheduler: Told, worker: Worker) -> None:
        scheduler.may_step.clear()
        batch = worker.submit([job(1, 2)] * 3)
        with pytest.raises(RequestError, match="3 texts are under way or wait, of 4") as error:
            worker.submit([job(1, 1)] * 2)
        assert error.value.status == 429
        with pytest.raises(RequestError, match="5 texts can never be served together; 4 may") as error:
            worker.submit([job(1, 1)] * 5)
        assert error.value.status == 400
        batch.cancel()
        worker.submit([job(1, 1)] * 4)

    run(scenario, waiting=4)


def test_a_scheduler_that_fails() -> None:
    async def scenario(scheduler: Told, worker: Worker) -> None:
        scheduler.fails = True
        with pytest.raises(PotqError, match="the engine stopped \\(RuntimeError: on fire\\); restart"):
            await tokens(worker.submit([job(1, 2)]))
        with pytest.raises(RequestError) as error:
            worker.submit([job(1, 1)])
        assert error.value.status == 503

    run(scenario)


def test_what_is_under_way_when_it_is_stopped_is_told() -> None:
    async def scenario(scheduler: Told, worker: Worker) -> None:
        batch = worker.submit([job(1, 10**9)])
        reader = asyncio.ensure_future(tokens(batch))
        await asyncio.sleep(0.05)
        await worker.stop()
        with pytest.raises(PotqError, match="shutting down"):
            await reader

    run(scenario)
