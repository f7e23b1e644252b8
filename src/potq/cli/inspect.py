"""``potq inspect``: what is in a packed checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from potq.cli import console
from potq.cli.recipe import quantization_config
from potq.config import PoTConfig
from potq.errors import ConfigError, ModelError


def inspect(
    model: Annotated[str, typer.Argument(help="A packed checkpoint folder, or a model that is not quantized yet.")],
    scheme: Annotated[
        str | None,
        typer.Option(help="For a model that is not quantized yet: what this preset would do. Default: that of quantize."),
    ] = None,
    model_class: Annotated[
        str | None, typer.Option("--class", help="For a model that is not quantized yet: its class of transformers.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the histogram as PNG (needs matplotlib).")] = None,
    every_module: Annotated[bool, typer.Option("--every-module", help="A row for each module.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the report as Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Show schemes, bits per weight, each layer's error, and how often each level is used.

    potq inspect out

    potq inspect smollm2-folder --scheme pot3

    The second, of a model that is not quantized, reads no weights: what would be quantized, what not, and the sizes.
    """
    form = console.ReportForm(every_module, as_markdown, as_json)
    from potq.checkpoint.files import check_source, read_config
    from potq.evaluate.outputs import check_plot

    config = quantization_config({"preset": scheme} if scheme else {})
    quantized = "quantization_config" in read_config(check_source(model, weights=False))
    if quantized and (scheme is not None or model_class is not None):
        option = "--scheme" if scheme is not None else "--class"
        raise ConfigError(f"{model} is quantized already; {option} shows what it would do to a model that is not")
    if plot is not None:
        if not quantized:
            raise ModelError(f"{model} is not quantized by potq, so that no levels are used; potq quantize {model} OUTPUT")
        check_plot(plot)
    console.quiet_libraries()
    if quantized:
        _inspect_packed(model, plot, form)
    else:
        _preview(model, config, model_class, form)


def _preview(model: str, config: PoTConfig, model_class: str | None, form: console.ReportForm) -> None:
    from potq.checkpoint.preview import preview

    report = preview(model, config, model_class=model_class)
    for line in report.remarks:
        console.note(line)
    form.show(report, {"quantized": False})


def _inspect_packed(model: str, plot: Path | None, form: console.ReportForm) -> None:
    from potq.checkpoint.loading import load
    from potq.evaluate.usage import level_usage, plot_usage
    from potq.kernels.explain import kernel_lines, use_kernels
    from potq.nn.packed_model import packed_modules
    from potq.nn.record import describe

    with console.status(f"loading {model}"):
        loaded = load(model)
        packed = {name: module for name, module in packed_modules(loaded).items() if module.tied_to is None}
        if not packed:
            raise ModelError(f"{model} is not quantized by potq, but by something else")
        usage = level_usage({name: module.quantized for name, module in packed.items()})
    report, kernels = describe(loaded), use_kernels(loaded, "int8")
    if plot is not None:
        plot_usage(usage, plot)
    levels = {scheme: {str(k): v for k, v in counts.items()} for scheme, counts in usage.items()}
    form.show(report, {"levels": levels, "kernels": kernels})
    if not form.for_people:
        return
    out = console.stdout()
    for name, counts in usage.items():
        out.print(_bars(name, counts))
    for line in kernel_lines(kernels):
        out.print(line, highlight=False)
    if plot is not None:
        out.print(f"wrote {plot}", highlight=False, soft_wrap=True)


def _bars(scheme: str, counts: dict[int, int]) -> Any:
    """The share of weights at each magnitude, as bars; a power of two is named by its exponent."""
    from rich.bar import Bar
    from rich.table import Table

    table = Table(title=f"{scheme}: magnitudes used", title_justify="left", box=None)
    for heading in ("magnitude", "share", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    total, largest = sum(counts.values()), max(counts.values())
    for magnitude, count in counts.items():
        exponent = f" = 2^{magnitude.bit_length() - 1}" if magnitude and magnitude & (magnitude - 1) == 0 else ""
        table.add_row(f"{magnitude}{exponent}", f"{100 * count / total:.2f} %", Bar(largest, 0, count, width=60))
    return table
