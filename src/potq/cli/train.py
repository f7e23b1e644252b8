"""``potq train``: quantization-aware training by a recipe."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potq.cli import console
from potq.cli.recipe import build

if TYPE_CHECKING:
    from potq.nn.report import QuantReport
    from potq.qat.recipe import TrainRecipe
    from potq.qat.train import TrainingRun


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
    from potq.qat.recipe import TrainRecipe

    settings = build(TrainRecipe, recipe, overrides or [], {"force": force or None})
    console.quiet_libraries()
    began = time.perf_counter()
    from potq.qat.train import TrainingRun

    with console.status(f"loading {settings.model}"):
        run = TrainingRun.load(settings)
    bar = console.progress_bar if run.leads else _no_bar
    with bar("training text") as update:
        run.read(update)
    if run.leads:
        _announce(run)
    with bar("teacher") as update:
        run.teach(update)
    with bar("training") as update:
        run.fit(update)
    with console.status(f"writing {settings.output}"):
        report = run.finish()
    if run.leads:
        _show(settings, run, report, time.perf_counter() - began, every_module=every_module, as_json=as_json)


def _no_bar(label: str) -> nullcontext[None]:
    return nullcontext()


def _announce(run: TrainingRun) -> None:
    """What will be trained, on what, and what is skipped."""
    assert run.train is not None
    evaluated = f", {len(run.evaluation)} to evaluate on" if run.evaluation is not None else ""
    console.note(f"text: {len(run.train)} sequences of {run.train.shape[1]} tokens{evaluated}")
    if run.plan is not None:
        console.note(f"quantized: {len(run.plan.targets)} weights; skipped: {len(run.plan.skipped)}")
        for skipped in run.plan.skipped:
            console.note(f"  skipped {skipped.name}: {skipped.reason}")
    console.note(f"memory: at least {run.memory / 1e9:.1f} GB on {run.device}, activations on top")
    if run.idle_devices:
        every = run.idle_devices + 1
        console.note(f"1 of {every} GPUs is used; torchrun --nproc-per-node {every} -m potq train ... uses all of them")
    if run.resumes:
        console.note(f"resuming at step {run.resumes}")


def _show(
    settings: TrainRecipe,
    run: TrainingRun,
    report: QuantReport | None,
    seconds: float,
    *,
    every_module: bool,
    as_json: bool,
) -> None:
    from potq.qat.trainer import LOG

    evaluated = [line for line in run.log() if "eval_perplexity" in line]
    first = evaluated[0] if evaluated else {}
    best = min(evaluated[1:] or evaluated, key=lambda line: line["eval_loss"]) if evaluated else {}  # of the checkpoints
    if as_json:
        result: dict[str, Any] = {"output": str(settings.output), "seconds": seconds, "log": run.log()}
        result |= {"perplexity_before": first.get("eval_perplexity"), "perplexity": best.get("eval_perplexity")}
        console.emit_json(result | (report.to_dict() if report is not None else {}))
        return
    out = console.stdout()
    if report is not None:
        out.print(*report.tables(every_module=every_module))
    if evaluated:
        before, after = first["eval_perplexity"], best["eval_perplexity"]
        out.print(f"perplexity {before:.3f} before, {after:.3f} after (step {best['step']})", highlight=False)
    lines = f"wrote {settings.output} in {seconds:.1f} s\nthe log is {run.folder / LOG}"
    out.print(lines, highlight=False, soft_wrap=True)
