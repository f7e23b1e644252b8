"""``potq inspect``: what is in a packed checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from potq.cli import console
from potq.errors import ModelError


def inspect(
    model: Annotated[str, typer.Argument(help="A packed checkpoint folder.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw the histogram as PNG (needs matplotlib).")] = None,
    every_module: Annotated[bool, typer.Option("--every-module", help="A row for each module.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Show schemes, bits per weight, each layer's error, and how often each level is used."""
    from potq.checkpoint.files import check_source
    from potq.evaluate.outputs import check_plot

    check_source(model)
    if plot is not None:
        check_plot(plot)
    from potq.checkpoint.loading import load
    from potq.evaluate.usage import level_usage, plot_usage
    from potq.kernels.explain import kernel_lines, use_kernels
    from potq.nn.plan import packed_modules
    from potq.ptq.quantize import describe

    console.quiet_libraries()
    with console.status(f"loading {model}"):
        loaded = load(model)
        packed = {name: module for name, module in packed_modules(loaded).items() if module.tied_to is None}
        if not packed:
            quantized = getattr(loaded.config, "quantization_config", None) is not None
            remedy = "but by something else" if quantized else f"potq quantize {model} OUTPUT makes a checkpoint of it"
            raise ModelError(f"{model} is not quantized by potq; {remedy}")
        usage = level_usage({name: module.quantized for name, module in packed.items()})
    report, kernels = describe(loaded), use_kernels(loaded, "int8")
    if plot is not None:
        plot_usage(usage, plot)
    if as_json:
        levels = {scheme: {str(k): v for k, v in counts.items()} for scheme, counts in usage.items()}
        console.emit_json({**report.to_dict(), "levels": levels, "kernels": kernels})
        return
    out = console.stdout()
    out.print(*report.tables(every_module=every_module))
    for scheme, counts in usage.items():
        out.print(_bars(scheme, counts))
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
