"""``potq quantize``: a full-precision model to a packed checkpoint."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potq.cli import console, processes
from potq.cli.checks import checked
from potq.cli.inputs import calibration_batches, calibration_inputs, check_class
from potq.cli.notes import announce, note_remarks
from potq.cli.recipe import CalibrationRecipe, QuantizeRecipe, build
from potq.cli.stream import streams
from potq.cli.unfinished import UnfinishedBlocks
from potq.errors import ConfigError
from potq.version import __version__

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from potq.config import PoTConfig
    from potq.nn.report import QuantReport
    from potq.ptq.allocation import Allocation


_OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")


def quantize(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [OUTPUT] [KEY=VALUE]...",
            help="MODEL: a folder, .gguf file, hub name, or smollm2. OUTPUT: the folder to write. KEY=VALUE: overrides.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option("-c", "--config", help="Recipe (YAML).")] = None,
    model_class: Annotated[
        str | None,
        typer.Option("--class", help="Class of transformers to load the model as. Default: the one its config.json names."),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(help="Preset of the linears, e.g. pot4 or pot4:group_size=64. Default: apot4:group_size=32."),
    ] = None,
    group_size: Annotated[str | None, typer.Option(help="Inputs per scale: a number, row or tensor.")] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            help="Preset of embeddings and head, or none. Default: int8, and apot4:group_size=32 where no scheme is named."
        ),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Pattern of modules to leave alone; repeatable.")] = None,
    scale_method: Annotated[str | None, typer.Option(help="absmax, mse, magnitude, weighted, fisher. Default: mse.")] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            help="fast, gptq, balanced, best or potptq; balanced:weigh_tokens=true changes a setting. Default: balanced "
            "with --calibration, fast without. "
            "All but fast calibrate on the model's own text unless --calibration names another."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Average bits per weight of the linears; each gets a scheme of its own. Needs calibration."),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            help="Schemes that each linear chooses from, e.g. pot2,pot3,pot4:group_size=32. Without --budget, of those "
            "no larger than --scheme. Default with --budget: pot2,pot3,pot3s,apot3s,pot4,apot4."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Calibration text: self (the model writes it), a file, a dataset as name:config:split, or pydoc. For "
            "models of images or sound: a folder of images, or of .wav files."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of calibration text and refinement. Default: 0.")] = None,
    dtype: Annotated[str | None, typer.Option(help="What the model computes in: auto, float32, bfloat16, float16.")] = None,
    device: Annotated[str | None, typer.Option(help="Device to calibrate on, e.g. cuda. Default: cpu.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Minutes that each of several processes waits for the others. Default: 30.")
    ] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Largest weight file. Default: 5GB.")] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Calibrate with one block of the model in memory at a time. Default: where the whole does not fit. Needs "
            "--calibration with a text; best then refines block by block.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
    every_module: Annotated[bool, typer.Option("--every-module", help="A report row for each module.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the report as Markdown on stdout.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Quantize a model of transformers to a packed power-of-two checkpoint.

    potq quantize smollm2 out --scheme pot4

    potq quantize bert-folder out --effort balanced --calibration text.txt

    potq quantize -c recipe.yaml quantization.group_size=32

    On several devices: torchrun --nproc-per-node 8 -m potq quantize smollm2 out --effort balanced --device cuda
    """
    form = console.ReportForm(every_module, as_markdown, as_json)
    overrides = [word for word in words or [] if _OVERRIDE.match(word)]
    given = [word for word in words or [] if word not in overrides]
    if len(given) > 2:
        raise ConfigError(f"expected MODEL and OUTPUT, found {' '.join(given)}; overrides are written key=value")
    model, output = [*given, None, None][:2]
    settings = build(
        QuantizeRecipe,
        recipe,
        overrides,
        {
            "model": model,
            "output": output,
            "model_class": model_class,
            "quantization.preset": scheme,
            "quantization.group_size": int(group_size) if group_size and group_size.isdigit() else group_size,
            "quantization.embedding": embedding,
            "quantization.ignore": ignore or None,
            "quantization.scale_method": scale_method,
            "quantization.effort": effort,
            "budget": budget,
            "candidates": candidates,
            "calibration.text": calibration,
            "seed": seed,
            "dtype": dtype,
            "device": device,
            "timeout": timeout,
            "max_shard_size": max_shard_size,
            "stream": stream,
            "force": force or None,
        },
    )
    _run(settings, form)


def _run(settings: QuantizeRecipe, form: console.ReportForm) -> None:
    text = settings.calibration_text()
    target = checked(settings, text)
    console.quiet_libraries()
    if processes.number():
        console.only_errors()
    device = processes.own_device(settings.device)
    with processes.meeting(device, settings.timeout) as group:
        _require_same(settings, group)
        _quantize(settings.model_copy(update={"device": device}), text, target, form, group)
        _await_the_first(group)


def _quantize(
    settings: QuantizeRecipe,
    text: CalibrationRecipe | None,
    target: Path,
    form: console.ReportForm,
    group: ProcessGroup | None,
) -> None:
    from potq.checkpoint.folder import save
    from potq.checkpoint.loading import class_at, load, rounded_types
    from potq.checkpoint.processors import processor_files
    from potq.ptq.effort import chosen_effort

    config, work = settings.config(), target.with_name(f".{target.name}.work")
    kind = class_at(settings.model, settings.model_class)
    if text is not None and kind is not None:
        check_class(kind, settings, text)
    if types := rounded_types(settings.model):
        console.note(f"{settings.model} was quantized before ({', '.join(types)}); what follows rounds its weights again")
    began = time.perf_counter()
    allocation, in_blocks = None, False
    if text is None:
        model, tokenizer = _streamed(settings, config, kind)
    else:
        in_parts = streams(settings, text, chosen_effort(config, given=True), kind)
        tokenizer = _tokenizer(settings.model, kind, needed=text.text != "self")
        with console.status(f"loading {settings.model}"):
            model = load(
                settings.model,
                model_class=settings.model_class,
                dtype=settings.dtype,
                device=settings.device,
                stream=in_parts,
            )
        inputs = _inputs(settings, text, model, tokenizer, group)
        allocation = _allocated(settings, config, model, inputs) if settings.allocates else None
        config = allocation.config if allocation is not None else config
        in_blocks = chosen_effort(config, given=True).calibrated
        _calibrated(model, config, inputs, settings.seed, work if in_blocks else None, group)
    if processes.number():
        return
    files, most = processor_files(settings.model), settings.max_shard_size
    with console.status(f"writing {settings.output}"):
        save(model, settings.output, tokenizer, files=files, force=settings.force, max_shard_size=most)
    if in_blocks:
        shutil.rmtree(work, ignore_errors=True)
    _show(settings, model.quant_report, allocation, time.perf_counter() - began, form)


def _inputs(
    settings: QuantizeRecipe,
    text: CalibrationRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    group: ProcessGroup | None,
) -> list[Any]:
    """Token batches of a causal language model; inputs by name of every other."""
    from potq.nn.classes import predicts_next

    if predicts_next(type(model)):
        return calibration_batches(text, model, tokenizer, seed=settings.seed, group=group)
    return calibration_inputs(settings, text, model)


def _require_same(settings: QuantizeRecipe, group: ProcessGroup | None) -> None:
    """Processes with other settings would wait for each other in vain; folders may be called otherwise on each machine."""
    from potq.data.ranks import Ranks

    paths = {"model", "output", "device"}
    fields = settings.model_dump(mode="json", exclude=paths)
    Ranks(group).agree({"potq's version": __version__, **{key: str(value) for key, value in fields.items()}})


def _await_the_first(group: ProcessGroup | None) -> None:
    """Until it has written: the run is over for all, or failed for all."""
    from potq.data.ranks import Ranks

    Ranks(group).values(None)


def _show(
    settings: QuantizeRecipe, report: QuantReport, allocation: Allocation | None, seconds: float, form: console.ReportForm
) -> None:
    if allocation is not None and form.for_people:
        console.stdout().print(allocation.table())
    found = {"allocation": allocation.to_dict()} if allocation is not None else {}
    form.show(report, {"output": str(settings.output), "seconds": seconds, **found})
    if form.for_people:
        console.stdout().print(f"wrote {settings.output} in {seconds:.1f} s", highlight=False, soft_wrap=True)


def _tokenizer(model: str, kind: type | None, *, needed: bool = False) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer, which the output gets too; a model without one is quantized all the same."""
    from potq.checkpoint.loading import find_tokenizer, load_tokenizer
    from potq.nn.classes import reads

    if kind is not None and reads(kind) != "text":
        return find_tokenizer(model)  # of a decoder behind what it reads
    tokenizer = load_tokenizer(model) if needed else find_tokenizer(model)
    if tokenizer is None:
        console.note(f"{model} has no tokenizer, so the output gets none; copy its files there to generate from text")
    return tokenizer


def _streamed(
    settings: QuantizeRecipe, config: PoTConfig, kind: type | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Without calibration: each weight is quantized as it is read, where it can be read by itself."""
    from potq.checkpoint.loading import load
    from potq.nn.remarks import packed_targets

    tokenizer = _tokenizer(settings.model, kind)
    with console.progress_bar("quantizing") as update:
        model = load(
            settings.model,
            config,
            model_class=settings.model_class,
            dtype=settings.dtype,
            device=settings.device,
            progress=update,
        )
    note_remarks(packed_targets(model), model.dtype)
    return model, tokenizer


def _calibrated(
    model: PreTrainedModel,
    config: PoTConfig,
    inputs: list[Any],
    seed: int,
    work: Path | None,
    group: ProcessGroup | None,
) -> None:
    """Quantize ``model``, on token batches or inputs by name.

    Where that goes block by block, those that are done are kept in ``work`` until it is saved.
    """
    from potq.nn.language import language_plan
    from potq.ptq.blocks import find_blocks
    from potq.ptq.quantize import quantize

    note_remarks(language_plan(model, config)[1].targets, model.dtype)
    if work is None:
        with console.progress_bar("quantizing") as update:
            quantize(model, config, inputs, seed=seed, progress=update, group=group)
        return
    total = None
    if not isinstance(inputs[0], dict):
        if not processes.number():
            announce(model, config, inputs, count=processes.count())
        total = len(find_blocks(model)[1])
    blocks = UnfinishedBlocks(work, total)
    with blocks.kept(), console.progress_bar("quantizing") as update:

        def progress(done: int, total: int, name: str) -> None:
            blocks.notice()
            update(done, total, name)

        quantize(model, config, inputs, seed=seed, work_folder=work, progress=progress, group=group)


def _allocated(settings: QuantizeRecipe, config: PoTConfig, model: PreTrainedModel, batches: list[Tensor]) -> Allocation:
    from potq.ptq.allocation import choose, measure

    with console.progress_bar("measuring sensitivity") as update:
        layers = measure(model, config, settings.schemes, batches, progress=update)
    return choose(config, layers, budget=settings.budget)
