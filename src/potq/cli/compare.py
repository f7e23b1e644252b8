"""``potq compare``: schemes and efforts side by side on one model."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from potq.cli import console
from potq.cli.inputs import calibration_batches
from potq.cli.measured import check_measured, show_measured
from potq.cli.notes import announce, note_remarks
from potq.cli.recipe import CalibrationRecipe, parse_schemes
from potq.cli.tasks import manager_of, names_of
from potq.config import EFFORTS, Effort, PoTConfig, effort_by_name
from potq.data.text import SELF
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
        str | None,
        typer.Option(
            help="For efforts beyond fast: self (the model writes it, the default), a file, a dataset as "
            "name:config:split, or pydoc."
        ),
    ] = None,
    calibration_windows: Annotated[int | None, typer.Option(min=1, help="Windows of calibration text. Default: 64.")] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens per window of --text. Default: 2048 or the model's limit.")
    ] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Only the first so many windows. Default: all.")] = None,
    embedding: Annotated[str, typer.Option(help="Preset of embeddings and head, or none.")] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Seed of calibration text and refinement.")] = 0,
    dtype: Annotated[str, typer.Option(help="What the model computes in.")] = "auto",
    resume: Annotated[Path | None, typer.Option(help="JSON file that rows are kept in, and taken from if measured.")] = None,
    kld: Annotated[bool, typer.Option("--kld", help="Measure the divergence from full precision, too.")] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Measure tokens a second of the decode engine, too.")] = False,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness to score, too, with commas between.", show_default=False),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="For --tasks: a folder of task files.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="For --tasks: the first so many questions of each.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw perplexity over bits as PNG (needs matplotlib).")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with a chart and a table, which needs no network.", show_default=False)
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON on stdout.")] = False,
) -> None:
    """Measure perplexity under several schemes and efforts, each on a fresh copy of the model; more where asked to.

    potq compare smollm2 --text wikitext2 --schemes apot4,int4,pot3 --efforts fast,balanced --windows 40 --resume rows.json

    The excess over full precision comes with a 95% interval (paired bootstrap over the windows). Activations stay exact.
    """
    console.refuse_two_forms(as_json=as_json, as_markdown=as_markdown)
    configs = _configs(schemes, efforts, embedding)
    needed = any(config.has_calibrated_effort for config in configs)
    if not needed and (calibration is not None or calibration_windows is not None or seed):
        raise ConfigError(
            "--calibration, --calibration-windows and --seed are for efforts beyond fast; name one, or leave them out"
        )
    calibration = calibration or SELF
    asked = _asked(tasks, include_path, limit)
    content = _checked(model, dtype, resume, plot, html, text, calibration)
    console.quiet_libraries()
    from potq.checkpoint.loading import check_language_model, load, load_tokenizer
    from potq.data.calibration_text import calibration_key
    from potq.data.tokens import tokenize
    from potq.evaluate import compare as comparison
    from potq.evaluate.further import Further
    from potq.evaluate.page import write_page
    from potq.nn.language import language_plan
    from potq.nn.properties import weight_count

    kept = comparison.KeptRows(resume)
    check_language_model(model, "potq compare")
    with console.status(f"loading {model}"):
        tokenizer = load_tokenizer(model)
        tokens = tokenize(tokenizer, content)
        loaded = load(model, dtype=dtype)
    targets = [target for config in configs for target in language_plan(loaded, config)[1].targets]
    note_remarks(dict.fromkeys(targets), loaded.dtype)
    recipe = CalibrationRecipe(text=calibration, windows=calibration_windows or 64)
    batches = cache(lambda: calibration_batches(recipe, loaded, tokenizer, seed=seed))
    text_key = None
    if needed:
        size = {"windows": recipe.windows, "seed": seed}
        text_key = calibration_key(calibration, loaded, tokenizer, window=recipe.window, **size)
        if text_key is None:
            batches()  # a text that cannot be read is an error now
    further = Further(tokenizer, kld, speed, asked, include_path, limit)
    rows = _measured(loaded, configs, comparison.Protocol(tokens, window, windows, batches, text_key, seed, further), kept)
    base = rows[0]
    protocol_line = f"{len(base.window_nll)} windows of {base.window} tokens, embedding and head: {embedding}"
    title = f"{model} on {text}: {protocol_line}"
    source = {"text": calibration, "windows": max(row.calibration_windows for row in rows)} if needed else None
    settings = {"model": model, "text": text, "embedding": embedding, "calibration": source, "seed": seed}
    show_measured(
        title,
        lambda: {**settings, "rows": comparison.to_dict(rows)},
        lambda: comparison.markdown(rows),
        lambda: comparison.table(rows),
        as_json=as_json,
        as_markdown=as_markdown,
    )
    if plot is not None:
        comparison.plot(rows, plot, f"{Path(model).name} on {Path(text).name}\n{protocol_line}")
        console.stderr.print(f"wrote {plot}", highlight=False)
    if html is not None:
        write_page(rows, html, title, weight_count(loaded))
        console.stderr.print(f"wrote {html}", highlight=False)


def _asked(tasks: str | None, include_path: Path | None, limit: int | None) -> tuple[str, ...]:
    """The tasks, which are there."""
    if tasks is None:
        if include_path is not None or limit is not None:
            raise ConfigError("--include-path and --limit are for tasks alone; pass --tasks NAMES, or leave them out")
        return ()
    names = names_of(tasks)
    with console.status("reading tasks"):
        manager_of(names, include_path)
    return names


def _checked(
    model: str, dtype: str, resume: Path | None, plot: Path | None, html: Path | None, text: str, calibration: str
) -> str:
    """The text, after a look at all that can be wrong before torch is loaded."""
    from potq.data.text import check_text, read_text

    check_measured(model, dtype, resume, plot, html)
    if calibration != SELF:
        check_text(calibration, learned=True)
    return read_text(text)


def _configs(schemes: str, efforts: str, embedding: str) -> list[PoTConfig]:
    """Every scheme under every effort; whatever is wrong with them is found here, before the work."""
    names = [name.strip() for name in efforts.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"no effort is named; the presets are {', '.join(EFFORTS)}")
    chosen, found = [effort_by_name(name) for name in names], parse_schemes(schemes)
    _refuse_repeated([scheme.name for scheme in found], list(found))
    _refuse_repeated(names, chosen)
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
                    announce(model, config, list(protocol.calibration()), label)
            with console.progress_bar(label) as update:
                row = measure_row(model, config, protocol, update)
            kept.add(key(config), row)
        rows.append(row)
    return rows
