"""lm-evaluation-harness's tasks (extra ``eval``): what a model scores in each, on the engine or on transformers' modules."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from potq.engine.runners import EngineRunner, ModulesRunner
from potq.errors import ConfigError, DataError, PotqError
from potq.evaluate.harness import EngineLM
from potq.validation import meant

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedTokenizerBase

    from potq.engine.runners import Runner
    from potq.nn.report import Progress

_BATCH = 16  # texts that the modules compute at once
_BOOTSTRAP = 1000  # samples, for the errors of metrics that are no means


@dataclass(frozen=True)
class TaskScore:
    """What a model scores in a task, by one of its metrics.

    Attributes:
        task: its name, or that of a group.
        metric: such as ``acc``.
        filter: how answers are read, ``none`` for as they are.
        value: the score.
        error: its standard error, where there is one.
        shots: examples in each prompt.
        samples: questions that were asked; None for a group.
    """

    task: str
    metric: str
    filter: str
    value: float
    error: float | None
    shots: int | None
    samples: int | None


def harness_model(runner: Runner, progress: Progress | None = None) -> LM:
    """What answers the harness: the engine by :class:`potq.evaluate.harness.EngineLM`, the modules by its own ``HFLM``."""
    if isinstance(runner, EngineRunner):
        return EngineLM(runner.engine, progress=progress)
    if isinstance(runner, ModulesRunner):
        return modules_model(runner.model, runner.tokenizer)
    raise TypeError(f"a runner is the engine or the modules, not {type(runner).__name__}")


def modules_model(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> LM:
    """What answers the harness by transformers' modules."""
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=_BATCH)


def task_manager(names: Sequence[str], include_path: Path | None) -> TaskManager:
    """The harness's index of tasks that has ``names``. Its own tasks, thousands of files, are read only if need be.

    Args:
        include_path: a folder of task files.

    Raises:
        ConfigError: a task that does not exist, or no such folder.
    """
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"the folder of tasks {include_path} does not exist")
    for with_own in (False, True) if include_path is not None else (True,):
        manager = TaskManager(include_path=None if include_path is None else str(include_path), include_defaults=with_own)
        unknown = [name for name in names if name not in manager.all_tasks]
        if not unknown:
            return manager
    raise ConfigError(f"there is no task {unknown[0]!r}{meant(unknown[0], manager.all_tasks)}")


def run_tasks(
    model: LM, names: Sequence[str], manager: TaskManager, *, limit: int | None = None, shots: int | None = None
) -> list[TaskScore]:
    """What a model scores. Whatever the harness prints goes to stderr.

    Args:
        limit: only the first so many questions of each task.
        shots: examples in each prompt; the task's own number by default.

    Raises:
        PotqError: the model cannot answer; data that is not here, or a task that fails.
    """
    try:
        with redirect_stdout(sys.stderr):
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=list(names),
                task_manager=manager,
                limit=limit,
                num_fewshot=shots,
                log_samples=False,
                bootstrap_iters=_BOOTSTRAP,
            )
    except PotqError:
        raise
    except Exception as error:  # whatever a task's code or data raises
        raise DataError(f"{', '.join(names)} failed ({type(error).__name__}: {error})") from error
    return [score for task, entries in found["results"].items() for score in _scores(task, entries, found)]


def _scores(task: str, entries: dict[str, Any], found: dict[str, Any]) -> list[TaskScore]:
    """Of a task's ``{"acc,none": 0.5, "acc_stderr,none": 0.1, ...}``."""
    shots, samples = found["n-shot"].get(task), found.get("n-samples", {}).get(task, {}).get("effective")
    scores = []
    for key, value in entries.items():
        metric, comma, way = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = entries.get(f"{metric}_stderr,{way}")
        known = float(error) if isinstance(error, int | float) else None
        scores.append(TaskScore(task, metric, way, float(value), known, shots, samples))
    return scores
