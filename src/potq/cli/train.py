"""``potq train``: quantization-aware training by a recipe."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potq.cli import console
from potq.cli.notes import note_remarks
from potq.cli.recipe import build

if TYPE_CHECKING:
    from potq.nn.report import Progress
    from potq.qat.recipe import TrainRecipe
    from potq.qat.run import Texts, TrainingResult, TrainingRun


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the recipe's keys.", show_default=False),
    ] = None,
    recipe: Annotated[Path | None, typer.Option("-c", "--config", help="Recipe (YAML); see recipes/.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
    every_module: Annotated[bool, typer.Option("--every-module", help="A report row for each module.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Train a model quantized, and save it packed; the same command goes on with a run that was killed.

    potq train -c recipes/smollm2.yaml

    potq train -c recipes/smollm2.yaml quantization.preset=pot3 output=smollm2-pot3 optimization.batch=4

    On several devices: torchrun --nproc-per-node 8 -m potq train -c recipe.yaml
    """
    from potq.qat.checks import check_recipe
    from potq.qat.recipe import TrainRecipe

    settings = build(TrainRecipe, recipe, overrides or [], {"force": force or None})
    check_recipe(settings)
    console.quiet_libraries()
    began = time.perf_counter()
    from potq.qat.run import train

    result = train(settings, stages=partial(_stage, settings), announce=_announce)
    if result.leads:
        _show(settings, result, time.perf_counter() - began, every_module=every_module, as_json=as_json)


def _stage(settings: TrainRecipe, name: str) -> AbstractContextManager[Progress | None]:
    if name == "loading":
        return console.status(f"loading {settings.model}")
    return console.status(f"writing {settings.output}") if name == "writing" else console.progress_bar(name)


def _announce(run: TrainingRun, texts: Texts) -> None:
    """What will be trained, on what, and what is skipped."""
    evaluated = f", {len(texts.evaluation)} to evaluate on" if texts.evaluation is not None else ""
    console.note(f"text: {len(texts.train)} sequences of {texts.train.shape[1]} tokens{evaluated}")
    if run.plan is not None:
        console.note(f"quantized: {len(run.plan.targets)} weights; skipped: {len(run.plan.skipped)}")
        for skipped in run.plan.skipped:
            console.note(f"  skipped {skipped.name}: {skipped.reason}")
        note_remarks(run.plan.targets, run.model.dtype)
    console.note(f"memory: at least {run.memory / 1e9:.1f} GB on {run.device}, activations on top")
    if run.idle_devices:
        every = run.idle_devices + 1
        console.note(f"1 of {every} GPUs is used; torchrun --nproc-per-node {every} -m potq train ... uses all of them")
    if run.resumes:
        console.note(f"resuming at step {run.resumes}")


def _show(settings: TrainRecipe, result: TrainingResult, seconds: float, *, every_module: bool, as_json: bool) -> None:
    report, best = result.report, result.best
    before = result.evaluations[0]["eval_perplexity"] if best is not None else None
    after = best["eval_perplexity"] if best is not None else None
    if as_json:
        found = {"output": str(settings.output), "seconds": seconds, "log": result.log}
        found |= {"perplexity_before": before, "perplexity": after}
        console.emit_json(found | (report.to_dict() if report is not None else {}))
        return
    out = console.stdout()
    if report is not None:
        out.print(*report.tables(every_module=every_module))
    if best is not None:
        out.print(f"perplexity {before:.3f} before, {after:.3f} after (step {best['step']})", highlight=False)
    lines = f"wrote {settings.output} in {seconds:.1f} s\nthe log is {result.log_file}"
    out.print(lines, highlight=False, soft_wrap=True)
