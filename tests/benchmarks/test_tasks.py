"""The tasks that the engine's benchmark makes, and their table."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the harness is not installed: pip install 'potq[eval]'")

from benchmarks.decode.report import tasks_table
from benchmarks.decode.tasks import ANSWER_WORDS, CHOICES, CONTEXT_WORDS, QUESTIONS, TEXTS, documents, write_tasks
from potq.evaluate.tasks import task_manager


def test_every_question_has_its_own_answer_among_others(tmp_path: Path) -> None:
    words = [[f"w{number}.{place}" for place in range(40)] for number in range(200)]
    (tmp_path / "wikitext2").mkdir()
    text = "\n".join(["= heading =", *(" ".join(each) for each in words)])
    (tmp_path / "wikitext2" / "hf_joined_test.txt").write_text(text, encoding="utf-8")
    tasks = documents(tmp_path)
    _, questions = tasks["continuations"]
    assert len(questions) == QUESTIONS
    for asked in questions:
        whose = asked["question"].split()[0].split(".")[0]
        assert len(asked["question"].split()) == CONTEXT_WORDS
        assert [choice.split(".")[0] == whose for choice in asked["choices"]].index(True) == asked["label"]
        assert len({choice.split(".")[0] for choice in asked["choices"]}) == CHOICES
        assert {len(choice.split()) for choice in asked["choices"]} == {ANSWER_WORDS}
    assert len({asked["label"] for asked in questions}) == CHOICES
    _, texts = tasks["paragraphs"]
    assert len(texts) == TEXTS
    assert documents(tmp_path) == tasks
    write_tasks(tasks, tmp_path)
    task_manager(list(tasks), tmp_path)


def test_the_table_has_the_difference() -> None:
    scores = {"modules, float": 0.5, "engine, float": 0.5, "engine, int8": 0.47}
    rows = [{"run": run, "task": "continuations", "metric": "acc", "score": score} for run, score in scores.items()]
    assert "| continuations, acc | 0.5000 | 0.5000 | 0.4700 | -0.0300 |" in tasks_table(rows)
