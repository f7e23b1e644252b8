"""``potq compare``: schemes and efforts side by side on one model."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from potq.cli import console
from potq.cli.quantize import announce, calibration_batches
from potq.cli.recipe import CalibrationRecipe, parse_schemes
from potq.config import EFFORTS, Effort, PoTConfig
from potq.errors import ConfigError
from potq.numerics.scheme import QuantScheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from potq.evaluate.compare import KeptRows, Protocol, Row

_Item = TypeVar("_Item", QuantScheme, Effort)


def compare(
    model: Annotated[str, typer.Argument(help="Full-precision folder, .gguf file, hub name, or smollm2.")],
    schemes: Annotated[str, typer.Option(help="Presets with commas between; overrides like pot4:group_size=32.")],
    text: Annotated[
        str,
        typer.Option(
            help="A file, wikitext2, tinystories, a dataset as name:config:split, or pydoc (help topics of Python)."
        ),
    ],
    efforts: Annotated[str, typer.Option(help=f"With commas between: {', '.join(EFFORTS)}.")] = "fast",
    calibration: Annotated[
        str, typer.Option(help="For efforts beyond fast: self (the model writes it), or a text as for --text.")
    ] = "self",
    calibration_windows: Annotated[int, typer.Option(min=1, help="Windows of calibration text.")] = 64,
    window: Annotated[
        int | None, typer.Option(help="Tokens per window of --text. Default: 2048 or the model's limit.")
    ] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Only the first so many windows. Default: all.")] = None,
    embedding: Annotated[str, typer.Option(help="Preset of embeddings and head, or none.")] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Seed of calibration text and refinement.")] = 0,
    dtype: Annotated[str, typer.Option(help="What the model computes in.")] = "auto",
    resume: Annotated[Path | None, typer.Option(help="JSON file that rows are kept in, and taken from if measured.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw perplexity over bits as PNG (needs matplotlib).")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON on stdout.")] = False,
) -> None:
    """Measure perplexity under several schemes and efforts, each on a fresh copy of the model.

    potq compare smollm2 --text wikitext2 --schemes apot4,int4,pot3 --efforts fast,balanced --windows 40 --resume rows.json

    The excess over full precision comes with a 95% interval (paired bootstrap over the windows). Activations stay exact.
    """
    if as_json and as_markdown:
        raise ConfigError("--json and --markdown print two things on one stdout; choose one")
    configs = _configs(schemes, efforts, embedding)
    from potq.checkpoint.loading import load, load_tokenizer
    from potq.data.text import read_text
    from potq.data.tokens import tokenize
    from potq.evaluate import compare as comparison
    from potq.nn.language import language_plan

    if plot is not None:
        comparison.check_plot(plot)
    kept = comparison.KeptRows(resume)
    content = read_text(text)
    console.quiet_libraries()
    with console.status(f"loading {model}"):
        tokenizer = load_tokenizer(model)
        tokens = tokenize(tokenizer, content)
        loaded = load(model, dtype=dtype)
    for config in configs:
        language_plan(loaded, config)
    needed = any(config.has_calibrated_effort for config in configs)
    recipe = CalibrationRecipe(text=calibration, windows=calibration_windows)
    batches = calibration_batches(recipe, loaded, tokenizer, seed=seed) if needed else []
    protocol = comparison.Protocol(tokens, window, windows, batches, seed)
    rows = _measured(loaded, configs, protocol, kept)
    base = rows[0]
    protocol_line = f"{len(base.window_nll)} windows of {base.window} tokens, embedding and head: {embedding}"
    title = f"{model} on {text}: {protocol_line}"
    if as_json:
        source = {"text": calibration, "windows": len(batches)} if needed else None
        settings = {"embedding": embedding, "calibration": source, "seed": seed}
        console.emit_json({"model": model, "text": text, **settings, "rows": comparison.to_dict(rows)})
    elif as_markdown:
        print(f"{title}\n\n{comparison.markdown(rows)}")
    else:
        out = console.stdout()
        out.print(title, highlight=False, soft_wrap=True)
        out.print(comparison.table(rows))
    if plot is not None:
        comparison.plot(rows, plot, f"{Path(model).name} on {Path(text).name}\n{protocol_line}")
        console.stderr.print(f"wrote {plot}", highlight=False)


def _configs(schemes: str, efforts: str, embedding: str) -> list[PoTConfig]:
    """Every scheme under every effort; whatever is wrong with them is found here, before the work."""
    names = [name.strip() for name in efforts.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"no effort is named; the presets are {', '.join(EFFORTS)}")
    if unknown := [name for name in names if name not in EFFORTS]:
        raise ConfigError(f"unknown effort {unknown[0]!r}; the presets are {', '.join(EFFORTS)}")
    found = parse_schemes(schemes)
    _refuse_repeated([scheme.name for scheme in found], list(found))
    _refuse_repeated(names, [EFFORTS[name] for name in names])
    return [PoTConfig(scheme=scheme, effort=effort, embedding=embedding) for scheme, effort in product(found, names)]


def _refuse_repeated(names: list[str], items: list[_Item]) -> None:
    for index, item in enumerate(items):
        if item in items[:index]:
            raise ConfigError(f"{names[index]} is named twice")


def _measured(model: PreTrainedModel, configs: list[PoTConfig], protocol: Protocol, kept: KeptRows) -> list[Row]:
    from potq.evaluate.compare import FULL_PRECISION, measure_row

    key = protocol.keys(model)
    rows = []
    for config in (None, *configs):
        row = kept.get(key(config))
        if row is None:
            label = FULL_PRECISION
            if config is not None and config.effort is not None:
                label = f"{config.scheme.name}, {config.effort.name}"
                if config.effort.calibrated:
                    announce(model, config, list(protocol.calibration), label)
            with console.progress_bar(label) as update:
                row = measure_row(model, config, protocol, update)
            kept.add(key(config), row)
        rows.append(row)
    return rows
