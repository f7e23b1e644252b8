"""The engine answers lm-evaluation-harness as the harness's own model of transformers' modules does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the harness is not installed: pip install 'potq[eval]'")

from harness_tasks import NAMES, write_tasks
from potq import Engine, native
from potq.engine.runners import open_runner
from potq.errors import ConfigError, DataError
from potq.evaluate.harness import EngineLM
from potq.evaluate.tasks import harness_model, run_tasks, task_manager

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")

CLOSE = 2e-3  # nats: keys and values in float16
PAIRS = [
    ("the cat", " sat on the mat"),
    ("the cat", " sat on the other"),
    ("the cat ", "sat"),
    ("", "the cat"),
    ("the mat " * 60, "the other cat " * 3),  # longer than the context of 128
    ("a", "the other cat, then " * 12),
]


def asked(*args: Any) -> Any:
    return SimpleNamespace(args=args)


@pytest.fixture(params=["tiny", "packed"])
def both(request: pytest.FixtureRequest, one_thread: None) -> Iterator[tuple[EngineLM, Any]]:
    """The engine with exact activations, and HFLM on the modules."""
    folder = str(request.getfixturevalue(f"{request.param}_folder"))
    modules = harness_model(open_runner(folder, engine=False, activations="float"))
    with Engine(folder, threads=1, activations="float") as engine:
        yield EngineLM(engine, slots=3), modules


def test_likelihoods(both: tuple[EngineLM, Any]) -> None:
    engine, modules = both
    questions = [asked(*pair) for pair in PAIRS[:5]]
    found, expected = engine.loglikelihood(questions), modules.loglikelihood(questions)
    assert [logprob for logprob, _ in found] == pytest.approx([logprob for logprob, _ in expected], abs=CLOSE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    with pytest.raises(DataError, match=r"an answer of the task has \d+ tokens, the model's context 128"):
        engine.loglikelihood([asked(*PAIRS[5])])


def test_what_the_model_would_write_is_greedy(both: tuple[EngineLM, Any]) -> None:
    engine, modules = both
    written = engine.generate_until([asked("the cat", {"max_gen_toks": 5})])[0]
    ((_, greedy),) = engine.loglikelihood([asked("the cat", written)])
    assert [greedy] == [found for _, found in modules.loglikelihood([asked("the cat", written)])]


def test_whole_texts(both: tuple[EngineLM, Any]) -> None:
    engine, modules = both
    texts = [asked(text) for text in ("the cat sat on the mat. " * 30, "zwölf", "a")]  # the first in several windows
    assert engine.loglikelihood_rolling(texts) == pytest.approx(modules.loglikelihood_rolling(texts), abs=10 * CLOSE)


def test_answers(both: tuple[EngineLM, Any]) -> None:
    engine, modules = both
    whole = engine.generate_until([asked("the cat", {"max_gen_toks": 20, "until": []})])[0]
    questions = [
        asked("the cat", {"until": ["\n\n"], "max_gen_toks": 20, "do_sample": False}),
        asked("the cat", {"until": [whole[3:5]], "max_gen_toks": 20, "temperature": 0.0}),
        asked("the mat " * 60, {"until": ["\n\n"], "max_gen_toks": 9}),
    ]
    found = engine.generate_until(questions)
    assert found == modules.generate_until(questions)
    assert found[1] == whole[: whole.index(whole[3:5])]


def test_answers_that_are_drawn_are_drawn_alike(packed_folder: Path) -> None:
    question = [asked("the cat", {"do_sample": True, "temperature": 2.0, "top_p": 0.9, "max_gen_toks": 9})] * 2
    with Engine(packed_folder, threads=1) as engine:
        found = [EngineLM(engine).generate_until(question) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_what_the_engine_does_not_have(packed_folder: Path) -> None:
    with Engine(packed_folder, threads=1) as engine:
        model = EngineLM(engine)
        with pytest.raises(ConfigError, match="num_beams, which the engine does not have; use --no-engine"):
            model.generate_until([asked("the", {"num_beams": 3})])
        with pytest.raises(DataError, match="wants answers of 128 tokens, the model's context has 128"):
            model.generate_until([asked("the", {"max_gen_toks": 128})])
        with pytest.raises(DataError, match="an empty context or answer"):
            model.score([([1], [])])


def test_a_common_beginning_is_computed_once(packed_folder: Path) -> None:
    with Engine(packed_folder, threads=1) as engine:
        model = EngineLM(engine, slots=1)
        context = list(range(100))
        alone = [model.score([(context, [token, 7])])[0] for token in range(4)]
        fresh = EngineLM(engine, slots=1)
        assert fresh.score([(context, [token, 7]) for token in range(4)]) == alone
        assert fresh._scheduler.statistics.shared_tokens == 3 * 64


def test_progress(packed_folder: Path) -> None:
    told: list[tuple[int, int, str]] = []
    with Engine(packed_folder, threads=1) as engine:
        EngineLM(engine, progress=lambda *told_: told.append(told_)).score([([1], [2]), ([1], [3])])
    assert told == [(1, 2, "likelihoods"), (2, 2, "likelihoods")]


# ---- tasks


def test_tasks_score_the_same_on_the_engine_and_the_modules(packed_folder: Path, tmp_path: Path, one_thread: None) -> None:
    manager = task_manager(NAMES, write_tasks(tmp_path))
    found = []
    for engine in (True, False):
        runner = open_runner(str(packed_folder), engine=engine, activations="float", threads=1)
        found.append(run_tasks(harness_model(runner), NAMES, manager))
    for ours, theirs in zip(*found, strict=True):
        assert (ours.task, ours.metric, ours.samples, ours.shots) == (theirs.task, theirs.metric, theirs.samples, 0)
        assert ours.value == pytest.approx(theirs.value, rel=1e-3)
        assert math.isfinite(ours.value)
    assert {(score.task, score.metric): score.samples for score in found[0]} == {
        ("tiny_choice", "acc"): 4,
        ("tiny_choice", "acc_norm"): 4,
        ("tiny_rolling", "word_perplexity"): 3,
        ("tiny_rolling", "byte_perplexity"): 3,
        ("tiny_writing", "exact_match"): 2,
    }


def test_tasks_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder of tasks .* does not exist"):
        task_manager(NAMES, tmp_path / "none")


def test_a_task_that_fails(packed_folder: Path, tmp_path: Path) -> None:
    manager = task_manager(NAMES[:1], write_tasks(tmp_path))
    (tmp_path / "tiny_choice.jsonl").unlink()
    with Engine(packed_folder, threads=1) as engine, pytest.raises(DataError, match="tiny_choice failed"):
        run_tasks(EngineLM(engine), NAMES[:1], manager)
