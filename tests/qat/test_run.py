"""``potq.qat.train``: a whole run in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import potq
from potq.nn.report import Progress
from potq.qat import TrainRecipe
from potq.qat.run import Texts, TrainingRun
from qat_helpers import evaluations, finish, logged, weights

Make = Callable[..., TrainRecipe]


def test_one_call_does_what_its_stages_do(make: Make, text: object) -> None:
    changes = {"data": {"evaluation": str(text)}, "loss": {"distillation": 1.0, "top_k": 4}}
    whole, staged = make("whole", **changes), make("staged", **changes)
    entered: list[str] = []
    steps: list[int] = []
    announced: list[tuple[int, int]] = []

    @contextmanager
    def stages(name: str) -> Iterator[Progress]:
        entered.append(name)
        yield lambda step, total, what: steps.append(step) if name == "training" else None

    def announce(run: TrainingRun, texts: Texts) -> None:
        assert entered == ["loading", "text"]
        announced.append(tuple(texts.train.shape))

    result = potq.qat.train(whole, stages=stages, announce=announce)
    assert entered == ["loading", "text", "teacher", "training", "writing"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert announced == [(15, 16)]
    finish(staged)
    assert weights(whole.output) == weights(staged.output)
    assert logged(whole) == logged(staged)
    assert result.report is not None
    assert result.report.modules
    assert {line["step"]: line["eval_loss"] for line in result.evaluations} == evaluations(whole)
    assert result.best is not None
    assert result.best["eval_loss"] == min(loss for step, loss in evaluations(whole).items() if step > 0)
    assert result.log_file.is_file()
    assert result.leads


def test_without_text_to_evaluate_on_nothing_is_best(make: Make) -> None:
    result = potq.qat.train(make(optimization={"steps": 1}))
    assert (result.evaluations, result.best) == ([], None)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"module 'potq\.qat' has no attribute 'learn'"):
        _ = potq.qat.learn
