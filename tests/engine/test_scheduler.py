"""``potq.engine.scheduler``: many texts are what each is alone. Threads and cancellation are also in ``csrc/tests``."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potq import Engine, native
from potq.engine.generation import Settings
from potq.engine.scheduler import Event, Scheduler
from potq.errors import ConfigError, DataError, EngineError

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")

PAGE = 64  # tokens


@pytest.fixture
def roomy(packed_folder: Path) -> Path:
    """The model with room for several pages."""
    config = json.loads((packed_folder / "config.json").read_text())
    (packed_folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 400}))
    return packed_folder


def _run(scheduler: Scheduler) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    while not scheduler.idle:
        for event in scheduler.step():
            found.setdefault(event.request, []).append(event)
    return found


def _ids(events: Sequence[Event]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def _requests(count: int) -> list[dict[str, Any]]:
    """Prompts that begin alike or not, drawn or greedy texts, some with logprobs."""
    draw = random.Random(3)
    system = [draw.randrange(260) for _ in range(150)]
    requests = []
    for i in range(count):
        begin = system[: draw.choice([0, 0, 70, 150])]
        request = {
            "tokens": begin + [draw.randrange(260) for _ in range(draw.randint(1, 40))],
            "max_new": draw.randint(1, 24),
            "logprobs": draw.choice([0, 0, 2]),
            "echo": 30 * (i % 5 == 0) * (1 + i % 4),
            "stop_tokens": (),
        }
        if i % 2:
            request["sampling"] = Settings(temperature=1.5, top_p=0.95, repetition_penalty=1.1, seed=i)
        requests.append(request)
    return requests


def _results(engine: Engine, requests: list[dict[str, Any]], order: list[int], **options: Any) -> list[list[Any]]:
    """Every request's events, without its number, in the order of ``requests``."""
    scheduler = Scheduler(engine, **options)
    numbers = {scheduler.submit(**requests[i]): i for i in order}
    found = _run(scheduler)
    results: list[list[Any]] = [[] for _ in requests]
    for number, events in found.items():
        results[numbers[number]] = [(e.token, e.logprobs, e.prompt_logprobs, e.finish) for e in events]
    assert scheduler.statistics.pages_used == 0
    return results


def test_texts_are_the_engines(roomy: Path) -> None:
    with Engine(roomy, threads=1) as engine:
        prompts = [[5, 6, 7], [5, 6], list(range(200))]
        alone = [engine.generate(prompt, max_new_tokens=9) for prompt in prompts]
        expected = []
        for prompt in prompts:
            text = engine.generate(prompt, max_new_tokens=9).finish()
            expected.append((text.ids, {"token": "stop"}.get(str(text.finish_reason), text.finish_reason)))
        scheduler = Scheduler(engine, slots=2)
        requests = [scheduler.submit(prompt, max_new=9) for prompt in prompts]
        found = _run(scheduler)
    assert len(alone) == 3
    assert [(_ids(found[request]), found[request][-1].finish) for request in requests] == expected


def test_a_text_is_the_same_bits_among_others(roomy: Path) -> None:
    requests = _requests(64)
    with Engine(roomy, threads=2) as engine:
        alone = [_results(engine, [request], [0])[0] for request in requests]
        page = Scheduler(engine, slots=1).cache_bytes // -(-400 // PAGE)
        for seed, slots in enumerate([1, 2, 5, 16]):
            order = list(range(64))
            random.Random(seed).shuffle(order)
            room = {} if seed % 2 else {"cache_bytes": 9 * page}  # texts are sent back, and go on as if nothing had been
            assert _results(engine, requests, order, slots=slots, chunk=1 + 40 * seed, **room) == alone


def test_a_common_beginning_is_computed_once(roomy: Path) -> None:
    with Engine(roomy, threads=1) as engine:
        scheduler = Scheduler(engine)
        scheduler.submit(list(range(200)), max_new=2)
        _run(scheduler)
        assert scheduler.statistics.shared_tokens == 0
        scheduler.submit([*range(150), 7, 7], max_new=2)
        scheduler.submit(list(range(200)), max_new=2)
        _run(scheduler)
        assert scheduler.statistics.shared_tokens == 2 * PAGE + 3 * PAGE
        scheduler.submit(list(range(192)), max_new=2)  # of the last page, the last token is wanted
        _run(scheduler)
        assert scheduler.statistics.shared_tokens == (5 + 2) * PAGE


def _steps_to_read(engine: Engine, flowing: int, prompts: int, tokens: int) -> int:
    """Until so many prompts of so many tokens are read, beside texts that go on."""
    scheduler = Scheduler(engine, slots=flowing + prompts, chunk=16)
    for i in range(flowing):
        scheduler.submit([i + 1], max_new=300, stop_tokens=())
    scheduler.step()
    wanted = {scheduler.submit([100 + i] * tokens, max_new=300, stop_tokens=()) for i in range(prompts)}
    steps = 0
    while wanted:
        wanted -= {event.request for event in scheduler.step()}
        steps += 1
    return steps


def test_few_texts_do_not_hold_up_many_prompts(roomy: Path) -> None:
    with Engine(roomy, threads=1) as engine:
        assert _steps_to_read(engine, 2, 2, 64) == 8  # 16 tokens a step
        assert _steps_to_read(engine, 1, 7, 16) == 1  # 112


def test_logprobs(roomy: Path) -> None:
    prompt = [5, 6, 7, 8]
    with Engine(roomy, threads=1) as engine:
        scheduler = Scheduler(engine)
        request = scheduler.submit(prompt, max_new=3, logprobs=4, echo=9, stop_tokens=())
        events = _run(scheduler)[request]
        made = _ids(events)
        expected = torch.log_softmax(engine.logits(prompt + made).double(), -1)
    (first, *rest) = events[0].prompt_logprobs or ()
    assert first is None
    assert all(event.prompt_logprobs is None for event in events[1:])
    entries = rest + [event.logprobs for event in events]
    assert len(entries) == len(prompt) + len(made) - 1
    for entry, row, token in zip(entries, expected, [*prompt, *made][1:], strict=False):
        assert entry is not None
        assert entry.token == token
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-5)
        assert [i for i, _ in entry.top] == row.topk(4).indices.tolist()
        assert [p for _, p in entry.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-5)


def test_the_logprobs_of_the_end_of_a_prompt(roomy: Path) -> None:
    prompt = list(range(200))
    with Engine(roomy, threads=1) as engine:
        row = torch.log_softmax(engine.logits(prompt).double(), -1)
        scheduler = Scheduler(engine)
        whole = scheduler.submit(prompt, max_new=0, logprobs=1, echo=200)
        (event,) = _run(scheduler)[whole]
        for echo, shared in ((1, 192), (8, 128), (199, 0), (200, 0), (1000, 0)):
            before = scheduler.statistics.shared_tokens
            request = scheduler.submit(prompt, max_new=0, logprobs=1, echo=echo)
            (found,) = _run(scheduler)[request]
            assert scheduler.statistics.shared_tokens - before == shared
            assert found.prompt_logprobs == (event.prompt_logprobs or ())[-echo:]
        last = (event.prompt_logprobs or ())[-1]
        assert last is not None
        assert last.logprob == pytest.approx(row[-2, 199].item(), abs=1e-5)
        with pytest.raises(ConfigError, match="invalid echo -1"):
            scheduler.submit(prompt, max_new=0, echo=-1)


def test_the_token_that_ends_a_text_has_a_logprob(roomy: Path) -> None:
    with Engine(roomy, threads=1) as engine:
        row = torch.log_softmax(engine.logits([5, 6, 7])[-1].double(), -1)
        scheduler = Scheduler(engine)
        request = scheduler.submit([5, 6, 7], max_new=3, logprobs=1, stop_tokens=[int(row.argmax())])
        (event,) = _run(scheduler)[request]
    assert (event.token, event.finish) == (None, "stop")
    assert event.logprobs is not None
    assert event.logprobs.token == int(row.argmax())
    assert event.logprobs.logprob == pytest.approx(row.max().item(), abs=1e-5)


def test_the_prompt_alone(roomy: Path) -> None:
    with Engine(roomy, threads=1) as engine:
        scheduler = Scheduler(engine)
        request = scheduler.submit([5, 6, 7], max_new=0, logprobs=1, echo=3)
        (event,) = _run(scheduler)[request]
    assert (event.token, event.finish, len(event.prompt_logprobs or ())) == (None, "length", 3)


def test_masks(roomy: Path) -> None:
    asked: list[list[int]] = []

    def even(made: Sequence[int]) -> bytes | None:
        asked.append(list(made))
        return None if len(made) == 2 else np.packbits(np.arange(260) % 2 == 0, bitorder="little").tobytes()

    def fails(made: Sequence[int]) -> bytes:
        raise RuntimeError("no such grammar")

    with Engine(roomy, threads=1) as engine:
        scheduler = Scheduler(engine)
        masked = scheduler.submit([5, 6, 7], max_new=6, mask=even, stop_tokens=())
        broken = scheduler.submit([5, 6, 7], max_new=6, mask=fails)
        nothing = scheduler.submit([5, 6, 7], max_new=6, mask=lambda made: bytes(33))
        short = scheduler.submit([5, 6, 7], max_new=6, mask=lambda made: b"\xff")
        found = _run(scheduler)
    made = _ids(found[masked])
    assert len(made) == 6
    assert all(token % 2 == 0 for i, token in enumerate(made) if i != 2)
    assert asked == [made[:i] for i in range(6)]
    messages = [found[request][-1].message or "" for request in (broken, nothing, short)]
    assert [found[request][-1].finish for request in (broken, nothing, short)] == ["error"] * 3
    assert "no such grammar" in messages[0]
    assert "allows no token" in messages[1]
    assert "a mask of 1 bytes" in messages[2]


def test_cancelling_frees_at_once(roomy: Path) -> None:
    with Engine(roomy, threads=1) as engine:
        scheduler = Scheduler(engine, slots=1)
        running = scheduler.submit([5] * 100, max_new=50)
        waiting = scheduler.submit([6] * 3, max_new=50)
        scheduler.step()
        assert (scheduler.statistics.running, scheduler.statistics.waiting) == (1, 1)
        assert scheduler.statistics.pages_used == 2
        scheduler.cancel(running)
        assert scheduler.statistics.pages_used == 0
        scheduler.cancel(waiting)
        scheduler.cancel(waiting)
        scheduler.cancel(99)
        assert not scheduler.idle
        assert [(event.request, event.finish) for event in scheduler.step()] == [
            (running, "cancelled"),
            (waiting, "cancelled"),
        ]
        assert scheduler.idle


def test_requests_that_cannot_be(roomy: Path) -> None:
    with Engine(roomy, threads=1) as engine:
        page = Scheduler(engine, slots=1).cache_bytes // -(-400 // PAGE)
        scheduler = Scheduler(engine, cache_bytes=2 * page)
        assert scheduler.statistics.pages_total == 2
        for tokens, settings, error, message in [
            ([], {}, EngineError, "the prompt is empty"),
            ([260], {}, EngineError, "outside the vocabulary of 260"),
            ([1] * 401, {}, EngineError, "does not fit the context of 400"),
            ([1] * 100, {"max_new": 200}, EngineError, "needs 5 pages of the cache, which has 2"),
            ([1.5], {}, DataError, "whole numbers"),
            ([1], {"max_new": -1}, ConfigError, "invalid max_new -1"),
            ([1], {"logprobs": 261}, EngineError, "invalid logprobs 261"),
        ]:
            with pytest.raises(error, match=message):
                scheduler.submit(tokens, **{"max_new": 3, **settings})
        assert scheduler.idle
        for options in ({"slots": 0}, {"slots": 65}, {"chunk": 129}, {"cache_bytes": 0}):
            with pytest.raises(ConfigError, match="invalid"):
                Scheduler(engine, **options)
        with pytest.raises(EngineError, match="raise cache_bytes"):
            Scheduler(engine, cache_bytes=100)
        closed = scheduler
    with pytest.raises(EngineError, match="closed"):
        closed.step()
