"""``potq quantize``: a full-precision model to a packed checkpoint."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potq.cli import console
from potq.cli.recipe import CalibrationRecipe, QuantizeRecipe, build
from potq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from potq.report import QuantReport
    from potq.scheme import PoTConfig


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
    scheme: Annotated[str | None, typer.Option(help="Preset of the linears. Default: apot4.")] = None,
    group_size: Annotated[str | None, typer.Option(help="Inputs per scale: a number, row or tensor.")] = None,
    embedding: Annotated[str | None, typer.Option(help="Preset of embeddings and head, or none. Default: int8.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Pattern of modules to leave alone; repeatable.")] = None,
    scale_method: Annotated[str | None, typer.Option(help="absmax, mse or weighted. Default: mse.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Calibration text: a UTF-8 file, or pydoc.")] = None,
    dtype: Annotated[str | None, typer.Option(help="What the model computes in: auto, float32, bfloat16, float16.")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Largest weight file. Default: 5GB.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
    every_module: Annotated[bool, typer.Option("--every-module", help="A report row for each module.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Quantize a causal language model to a packed power-of-two checkpoint.

    potq quantize smollm2 out --scheme pot4

    potq quantize -c recipe.yaml quantization.group_size=32
    """
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
            "quantization.preset": scheme,
            "quantization.group_size": int(group_size) if group_size and group_size.isdigit() else group_size,
            "quantization.embedding": embedding,
            "quantization.ignore": ignore or None,
            "quantization.scale_method": scale_method,
            "calibration.text": calibration,
            "dtype": dtype,
            "max_shard_size": max_shard_size,
            "force": force or None,
        },
    )
    _run(settings, every_module=every_module, as_json=as_json)


def _run(settings: QuantizeRecipe, *, every_module: bool, as_json: bool) -> None:
    from potq.checkpoint import check_destination, check_shard_size, save

    config = settings.config()
    check_shard_size(settings.max_shard_size)
    check_destination(settings.output, force=settings.force)
    console.quiet_libraries()
    began = time.perf_counter()
    model, tokenizer, report = _quantized(settings, config)
    with console.status(f"writing {settings.output}"):
        save(model, settings.output, tokenizer, force=settings.force, max_shard_size=settings.max_shard_size)
    seconds = time.perf_counter() - began
    if as_json:
        console.emit_json({"output": str(settings.output), "seconds": seconds, **report.model_dump(mode="json")})
        return
    console.stdout().print(*report.tables(every_module=every_module))
    console.stdout().print(f"wrote {settings.output} in {seconds:.1f} s", highlight=False)


def _quantized(settings: QuantizeRecipe, config: PoTConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, QuantReport]:
    """Stream where the weights can be read one by one; calibration needs the whole model first."""
    from potq.loading import load, load_tokenizer
    from potq.ptq import quantize

    tokenizer = load_tokenizer(settings.model)
    with console.progress_bar("quantizing") as update:
        if settings.calibration is None:
            model = load(settings.model, config, dtype=settings.dtype, progress=update)
            report: QuantReport = model.quant_report
        else:
            model = load(settings.model, dtype=settings.dtype)
            report = quantize(model, config, _batches(settings.calibration, tokenizer), progress=update)
    return model, tokenizer, report


def _batches(recipe: CalibrationRecipe, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    from potq.evaluate.perplexity import tokenize
    from potq.evaluate.text import read_text

    tokens = tokenize(tokenizer, read_text(recipe.text))
    windows = tokens[: recipe.window * recipe.windows].split(recipe.window)
    whole = [window[None] for window in windows if len(window) == recipe.window]
    if not whole:
        raise DataError(f"{recipe.text} has {len(tokens)} tokens, less than one calibration window of {recipe.window}")
    return whole
