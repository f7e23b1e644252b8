"""``potq.engine.scheduler``: many texts are what each is alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from potq import Engine, native
from potq.engine.scheduler import Event, Scheduler

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


def _run(scheduler: Scheduler) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    while not scheduler.idle:
        for event in scheduler.step():
            found.setdefault(event.request, []).append(event)
    return found


def test_texts_are_the_engines(packed_folder: Path) -> None:
    with Engine(packed_folder, threads=1) as engine:
        prompts = [[5, 6, 7], [5, 6], [9]]
        alone = [engine.generate(prompt, max_new_tokens=9).finish().ids for prompt in prompts]
        scheduler = Scheduler(engine, slots=2)
        requests = [scheduler.submit(prompt, max_new=9) for prompt in prompts]
        events = _run(scheduler)
    for request, ids in zip(requests, alone, strict=True):
        assert [event.token for event in events[request] if event.token is not None] == ids
        assert events[request][-1].finish in ("length", "stop")
        assert all(event.finish is None for event in events[request][:-1])
