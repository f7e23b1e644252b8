"""``potq.Engine``: texts as they come, and one user at a time. What it computes is tested in ``tests/engine``."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import signal
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import potq
from potq import Engine, native
from potq.errors import CheckpointError, ConfigError, DataError, EngineError

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")

DRAWN: dict[str, Any] = {
    "temperature": 2.0,
    "top_k": 60,
    "top_p": 0.95,
    "min_p": 0.001,
    "repetition_penalty": 1.1,
    "stop_token_ids": (),
}


@pytest.fixture
def engine(packed_folder: Path) -> Engine:
    return Engine(packed_folder)


@pytest.fixture
def long_folder(packed_folder: Path) -> Path:
    """The model with room for a text that takes seconds."""
    config = json.loads((packed_folder / "config.json").read_text())
    (packed_folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 30_000}))
    return packed_folder


# ---- texts


def test_facts(engine: Engine, packed_folder: Path) -> None:
    assert (engine.vocabulary, engine.context, engine.threads) == (260, 128, torch.get_num_threads())
    assert engine.isa == native.isa()
    assert engine.weight_bytes > 10_000
    assert repr(engine) == (
        f"Engine({str(packed_folder)!r}, activations='int8', context=128, threads={engine.threads}, isa={engine.isa!r})"
    )
    small = Engine(packed_folder, threads=3, context=20, activations="float")
    assert (small.context, small.threads, small.activations) == (20, 3, "float")


def test_pieces_are_the_text_of_the_ids(engine: Engine) -> None:
    generation = engine.generate("the cat", max_new_tokens=40, seed=3, **DRAWN)
    pieces = list(generation)
    assert len(pieces) > 1
    assert "".join(pieces) == generation.text == engine.tokenizer.decode(generation.ids, skip_special_tokens=True)
    assert (len(generation.ids), generation.finish_reason) == (40, "length")


def test_greedy_text_is_what_the_logits_say(engine: Engine) -> None:
    generation = engine.generate("the cat", max_new_tokens=30)
    assert (generation.ids, generation.finish_reason, generation.text) == ([], None, "")
    made = generation.finish().ids
    prompt = engine.tokenizer("the cat")["input_ids"]
    chosen = engine.logits(prompt + made)[len(prompt) - 1 :].argmax(-1).tolist()
    assert chosen[: len(made)] == made
    assert generation.finish_reason == ("token" if len(made) < 30 else "length")


def test_prompts_of_all_kinds_go_on_alike(engine: Engine) -> None:
    ids = engine.tokenizer("the cat")["input_ids"]
    text = engine.generate("the cat", max_new_tokens=9, stop_token_ids=()).finish()
    prompts: list[Any] = [ids, tuple(ids), torch.tensor(ids), torch.tensor([ids])]
    for prompt in prompts:
        generation = engine.generate(prompt, max_new_tokens=9, stop_token_ids=())
        assert list(generation) == generation.ids == text.ids
        assert generation.text == text.text
    engine.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = engine.generate([{"role": "user", "content": "the cat"}], max_new_tokens=9, stop_token_ids=())
    assert "".join(chat) == text.text


def test_end_tokens_end_a_text_and_are_none_of_it(engine: Engine) -> None:
    made = engine.generate([5, 6], max_new_tokens=20, stop_token_ids=()).finish().ids
    assert len(made) == 20
    last = made[7]
    generation = engine.generate([5, 6], max_new_tokens=20, stop_token_ids=[last]).finish()
    assert (generation.ids, generation.finish_reason) == (made[: made.index(last)], "token")
    assert list(generation) == []


def test_a_stop_text_ends_a_text_before_it(engine: Engine) -> None:
    whole = engine.generate("the cat", max_new_tokens=40, seed=3, **DRAWN).finish().text
    stop = whole[10:13]
    generation = engine.generate("the cat", max_new_tokens=40, seed=3, stop=["never there", stop], **DRAWN)
    assert "".join(generation) == whole[: whole.index(stop)]
    assert generation.finish_reason == "stop"
    assert len(generation.ids) < 40


def test_a_seed_is_a_text_whatever_the_threads(packed_folder: Path) -> None:
    def ids(seed: int | None, threads: int) -> list[int]:
        with Engine(packed_folder, threads=threads) as engine:
            return engine.generate([1, 2, 3], max_new_tokens=30, seed=seed, **DRAWN).finish().ids

    assert ids(5, 1) == ids(5, 2) == ids(5, 3) != ids(6, 1)
    assert ids(None, 1) != ids(None, 1)


def test_a_full_context_ends_a_text(packed_folder: Path) -> None:
    engine = Engine(packed_folder, context=40)
    generation = engine.generate([5] * 38, stop_token_ids=()).finish()
    assert (len(generation.ids), generation.finish_reason) == (3, "context")
    with pytest.raises(EngineError, match="41 tokens do not fit the context of 40"):
        engine.generate([5] * 41)
    with pytest.raises(EngineError, match="41 tokens do not fit the context of 40"):
        engine.logits([5] * 41)


def test_breaking_off_leaves_the_engine_usable(engine: Engine) -> None:
    expected = engine.generate("the cat", max_new_tokens=20).finish().ids
    for _ in engine.generate("another text", stop_token_ids=()):
        break
    assert engine.generate("the cat", max_new_tokens=20).finish().ids == expected


def test_what_prompts_share_is_kept_and_changes_nothing(engine: Engine) -> None:
    prompts = [[*range(50)], [*range(50)], [*range(30), 7, 8], [*range(60)], [9], [*range(50)]]
    found = [engine.generate(prompt, max_new_tokens=8, stop_token_ids=()).finish().ids for prompt in prompts]
    for prompt, made in zip(prompts, found, strict=True):
        engine.reset()
        assert engine.generate(prompt, max_new_tokens=8, stop_token_ids=()).finish().ids == made
    continued = [*prompts[5], *found[5][:4]]
    assert engine.generate(continued, max_new_tokens=4, stop_token_ids=()).finish().ids == found[5][4:]


def test_kept_tokens_are_not_computed_again(engine: Engine) -> None:
    ids = list(range(100))
    engine.generate(ids, max_new_tokens=1).finish()
    text = engine._start(potq.engine.generation.token_ids([*ids, 5]), potq.engine.generation.Settings())
    assert native.library().potq_engine_length(engine._handle) == 100
    engine._next(text)
    assert native.library().potq_engine_length(engine._handle) == 101
    engine.reset()
    assert native.library().potq_engine_length(engine._handle) == 0


def test_logits(engine: Engine) -> None:
    logits = engine.logits([1, 2, 3])
    assert (logits.shape, logits.dtype) == ((3, 260), torch.float32)
    assert torch.equal(engine.logits(torch.tensor([[1, 2, 3]])), logits)
    assert torch.equal(engine.logits([1, 2]), logits[:2])


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "invalid threads 0; use an integer in 1..256"),
        ({"threads": 257}, "threads"),
        ({"threads": 1.5}, "threads"),
        ({"context": 0}, "invalid context"),
        ({"context": 2**31}, "context"),
        ({"context": "8"}, "context"),
        ({"activations": "int4"}, "unknown activations 'int4'; choose int8 or float"),
    ],
    ids=str,
)
def test_options_that_cannot_be(packed_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(packed_folder, **options)


def test_more_context_than_the_model_knows(packed_folder: Path) -> None:
    with pytest.raises(EngineError, match="a context of 129 tokens was asked for, the model knows 128"):
        Engine(packed_folder, context=129)


def test_what_cannot_be_opened(tmp_path: Path, packed_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Engine(tmp_path / "none")
    with pytest.raises(EngineError, match="is none here; download or potq quantize"):
        Engine("some/model")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match="is a GGUF file"):
        Engine(tmp_path / "x.gguf")
    (packed_folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(EngineError, match="safetensors"):
        Engine(packed_folder)


def test_without_the_library(packed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: "it is not there")
    with pytest.raises(EngineError, match="it is not there"):
        Engine(packed_folder)


def test_the_instruction_set_of_the_environment(packed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.isa.cache_clear()
    monkeypatch.setenv("POTQ_CPU_ISA", "scalar")
    try:
        assert Engine(packed_folder).isa == "scalar"
    finally:
        native.isa.cache_clear()


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "message"),
    [
        ("", {}, DataError, "the prompt is empty"),
        ([], {}, EngineError, "no tokens"),
        (torch.zeros(0, dtype=torch.long), {}, EngineError, "no tokens"),
        ([260], {}, EngineError, "token 260 .* outside the vocabulary of 260"),
        ([0, -1], {}, EngineError, r"token -1 \(number 1\) is outside"),
        ([2**40], {}, DataError, "whole numbers"),
        ("text", {"top_p": 2}, ConfigError, "top_p"),
        ("text", {"temprature": 1}, ConfigError, "temprature: unknown key"),
        ([1], {"stop": "a"}, ConfigError, "stop texts are for prompts of text"),
        ([{"role": "user", "content": "hi"}], {}, DataError, "no chat template"),
    ],
)
def test_prompts_and_settings_that_are_refused(
    engine: Engine, prompt: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine.generate(prompt, **settings)
    assert len(engine.generate([1], max_new_tokens=2, stop_token_ids=()).finish().ids) == 2


def test_logits_refuse_the_same(engine: Engine) -> None:
    with pytest.raises(EngineError, match="no tokens"):
        engine.logits([])
    with pytest.raises(EngineError, match="outside the vocabulary"):
        engine.logits([1, 260])


def test_no_tokenizer_is_needed_for_ids(packed_folder: Path) -> None:
    for file in packed_folder.glob("tokenizer*"):
        file.unlink()
    engine = Engine(packed_folder)
    assert len(list(engine.generate([1, 2], max_new_tokens=5, stop_token_ids=()))) == 5
    with pytest.raises(CheckpointError, match="no tokenizer"):
        engine.generate("the cat")


# ---- one user at a time


@pytest.mark.parametrize("later", ["generate", "logits", "reset"])
def test_a_later_use_ends_a_text(engine: Engine, later: str) -> None:
    first = engine.generate([1, 2], stop_token_ids=())
    next(first)
    uses: dict[str, Any] = {
        "generate": lambda: engine.generate([3]),
        "logits": lambda: engine.logits([3]),
        "reset": engine.reset,
    }
    uses[later]()
    with pytest.raises(EngineError, match="ended by a later use"):
        next(first)
    assert len(first.ids) == 1


def in_another_thread(action: Any) -> Any:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(action())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_two_threads_at_once_are_refused(engine: Engine) -> None:
    uses: list[Any] = [lambda: engine.generate([1]), lambda: engine.logits([1]), engine.reset, engine.close]
    with engine.in_use():  # as while it computes
        for use in uses:
            error = in_another_thread(use)
            assert isinstance(error, EngineError)
            assert "another thread is using the engine" in str(error)
    assert len(engine.generate([1], max_new_tokens=2, stop_token_ids=()).finish().ids) == 2


def test_two_threads_hammering_one_engine(long_folder: Path) -> None:
    engine, refused, wrong = Engine(long_folder, threads=1), [], []

    def use() -> None:
        for number in range(200):
            try:
                engine.generate([number % 250] * 40, max_new_tokens=3).finish()
            except EngineError as error:
                refused.append(error)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all("another thread" in str(error) or "later use" in str(error) for error in refused)
    assert len(engine.generate([1], max_new_tokens=2, stop_token_ids=()).finish().ids) == 2


def test_two_threads_that_read_one_text_are_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []

    def step(text: int) -> int:
        errors.append(in_another_thread(lambda: next(generation)))
        return 1

    monkeypatch.setattr(engine, "_next", step)
    generation = engine.generate([1], max_new_tokens=1)
    assert list(generation) == [1]
    assert "one reader at a time" in str(errors[0])


def test_other_threads_go_on_while_it_computes(long_folder: Path) -> None:
    """Without the GIL being let go, the counter could not move during a call: Python's own switching is off."""
    engine, count, over = Engine(long_folder, threads=1), 0, threading.Event()

    def counting() -> None:
        nonlocal count
        while not over.is_set():
            count += 1
            time.sleep(1e-5)

    before = sys.getswitchinterval()
    thread = threading.Thread(target=counting)
    thread.start()
    sys.setswitchinterval(60)
    try:
        moved = 0
        text = engine._start(
            potq.engine.generation.token_ids([1] * 2000), potq.engine.generation.Settings(stop_token_ids=())
        )
        began = time.monotonic()
        while not moved and time.monotonic() - began < 20:
            start = count
            engine._next(text)
            moved = count - start
    finally:
        sys.setswitchinterval(before)
        over.set()
        thread.join()
    assert moved


def test_ctrl_c_is_heard_while_it_generates(long_folder: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    engine, before = Engine(long_folder), signal.signal(signal.SIGALRM, interrupt)
    expected = engine.generate([1, 2, 3], max_new_tokens=5, stop_token_ids=()).finish().ids
    generation = engine.generate([1] * 100, max_new_tokens=29_000, stop_token_ids=())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            generation.finish()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 1
    assert generation.finish_reason is None
    assert list(generation) == []  # it does not go on as if nothing had been
    assert engine.generate([1, 2, 3], max_new_tokens=5, stop_token_ids=()).finish().ids == expected


# ---- its life


def test_a_closed_engine(packed_folder: Path) -> None:
    with Engine(packed_folder) as engine:
        generation = engine.generate([1], stop_token_ids=())
        next(generation)
    engine.close()
    assert "closed" in repr(engine)
    uses: list[Any] = [lambda: next(generation), lambda: engine.generate([1]), lambda: engine.logits([1])]
    for use in uses:
        with pytest.raises(EngineError, match="the engine is closed"):
            use()


def test_an_engine_that_nobody_holds_is_closed(packed_folder: Path) -> None:
    closed: list[Any] = []
    engine = Engine(packed_folder)
    generation, gone = engine.generate([1], max_new_tokens=3, stop_token_ids=()), weakref.ref(engine)
    weakref.finalize(engine._closing.peek()[0], closed.append, True)  # type: ignore[index]
    del engine
    assert len(list(generation)) == 3  # a text holds its engine
    del generation
    gc.collect()
    assert gone() is None
    assert closed


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_engine_cannot_be_copied(engine: Engine, copied: Any) -> None:
    with pytest.raises(EngineError, match="cannot be pickled or copied"):
        copied(engine)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_refused(engine: Engine) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            engine.generate([1])
        except EngineError as error:
            engine.close()
            status = 0 if "before this process was forked" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert isinstance(engine.logits([1]), Tensor)
