"""``potq eval --tasks``: lm-evaluation-harness's tasks."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potq.cli import console
from potq.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from rich.table import Table

    from potq.config import Activations
    from potq.engine.runners import Runner, RunnerOptions
    from potq.evaluate.tasks import TaskScore


@dataclass(frozen=True)
class Tasks:
    """What is asked for.

    Attributes:
        names: of tasks.
        include_path: a folder of task files beside the harness's own.
        limit: only the first so many questions of each.
        shots: examples in each prompt.
    """

    names: tuple[str, ...]
    include_path: Path | None
    limit: int | None
    shots: int | None


@dataclass(frozen=True)
class Ran:
    """What a model scored, and how it ran."""

    model: str
    activations: Activations
    scores: list[TaskScore]
    runner: Runner
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        ran = {"path": self.runner.name, "why_not_engine": self.runner.why_not_engine, "kernels": self.runner.kernels}
        scores = [asdict(score) for score in self.scores]
        return {"model": self.model, "activations": self.activations, "tasks": scores, "seconds": self.seconds, **ran}


def run(
    tasks: Tasks, model: str, reference: str | None, engine: bool | None, options: RunnerOptions, *, as_json: bool
) -> None:
    """Print what a model scores; beside it what a reference does, whose activations are exact.

    Raises:
        MissingDependencyError: lm-eval is not installed.
        PotqError: as in :func:`potq.evaluate.tasks.run_tasks` and :func:`potq.engine.runners.open_runner`.
    """
    with console.status("reading tasks"):
        manager = manager_of(tasks.names, tasks.include_path)
    from potq.engine.runners import open_runner
    from potq.evaluate.tasks import harness_model, run_tasks

    def asked(source: str, options: RunnerOptions) -> Ran:
        with console.status(f"loading {source}"):
            runner = open_runner(source, engine=engine, **options)
        began = time.perf_counter()
        with console.progress_bar(source) as update:
            answers = harness_model(runner, update)
            scores = run_tasks(answers, tasks.names, manager, limit=tasks.limit, shots=tasks.shots)
        return Ran(source, options["activations"], scores, runner, time.perf_counter() - began)

    ran = asked(model, options)
    compared = None if reference is None else asked(reference, {**options, "activations": "float"})
    if as_json:
        beside = {} if compared is None else {"reference": compared.to_dict()}
        console.emit_json({**ran.to_dict(), "limit": tasks.limit, **beside})
        return
    out = console.stdout()
    out.print(_table(ran, compared))
    for part in (ran, compared):
        for line in [] if part is None else [*part.runner.lines, f"{part.seconds:.1f} s"]:
            out.print(line, style="dim", highlight=False)


def manager_of(names: tuple[str, ...], include_path: Path | None) -> TaskManager:
    """The harness's index of tasks, which has ``names``.

    Raises:
        MissingDependencyError: lm-eval is not installed.
        ConfigError: a task that does not exist, or no such folder.
    """
    try:
        from potq.evaluate.tasks import task_manager
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"--tasks needs {error.name}: pip install 'potq[eval]'") from None
    return task_manager(names, include_path)


def names_of(tasks: str) -> tuple[str, ...]:
    """The names in a list with commas between.

    Raises:
        ConfigError: there are none.
    """
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise ConfigError("--tasks names no task")
    return names


def _table(ran: Ran, compared: Ran | None) -> Table:
    from rich import box
    from rich.table import Table

    beside = {} if compared is None else {_key(score): score.value for score in compared.scores}
    table = Table(box=box.SIMPLE)
    numbers = ("shots", "questions", "score", "standard error", *(("reference", "difference") if compared else ()))
    for heading in ("task", "metric", "filter", *numbers):
        table.add_column(heading, justify="right" if heading in numbers else "left")
    for score in ran.scores:
        error = "" if score.error is None else f"{score.error:.4f}"
        cells = [_count(score.shots), _count(score.samples), f"{score.value:.4f}", error]
        if _key(score) in beside:
            cells += [f"{beside[_key(score)]:.4f}", f"{score.value - beside[_key(score)]:+.4f}"]
        table.add_row(score.task, score.metric, score.filter, *cells)
    return table


def _key(score: TaskScore) -> tuple[str, str, str]:
    return score.task, score.metric, score.filter


def _count(number: int | None) -> str:
    return "" if number is None else str(number)
