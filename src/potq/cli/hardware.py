"""``potq hardware``: circuits for a scheme's products, and which scheme is worth building."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from potq.cli import console
from potq.cli.measured import check_measured, show_measured
from potq.cli.recipe import parse_schemes
from potq.errors import ConfigError
from potq.numerics.scheme import QuantScheme

hardware = typer.Typer(help="Circuits for a scheme's products.", no_args_is_help=True)


class Structures(StrEnum):
    """The words of ``potq.hardware.rtl.product.Structure``; typer wants an enumeration."""

    shift = "shift"
    two_shifts = "two-shifts"
    triple_shift = "triple-shift"
    booth = "booth"
    baugh_wooley = "baugh-wooley"
    multiply = "multiply"


@hardware.command("rtl")
def rtl(
    scheme: Annotated[str, typer.Option(help="A preset; overrides like pot4:group_size=32.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, new or empty.")],
    structure: Annotated[
        Structures | None, typer.Option(help="How a product is made. Default: the first that the grid can have.")
    ] = None,
    activation_bits: Annotated[int, typer.Option(help="Bits of an activation, two's complement.")] = 8,
    lanes: Annotated[int, typer.Option(help="Products a cycle of the dot product.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print the description as JSON on stdout.")] = False,
) -> None:
    """Write a scheme's arithmetic as SystemVerilog: product, multiply-accumulate, dot product, group scaling, testbench.

    potq hardware rtl --scheme pot3s -o rtl
    """
    from potq.hardware.rtl.design import design_of  # no other command needs the generator
    from potq.hardware.rtl.product import STRUCTURES
    from potq.hardware.rtl.write import check_folder, description, write

    check_folder(output)
    chosen = next((name for name in STRUCTURES if name == structure), None)
    design = design_of(QuantScheme(scheme), structure=chosen, activation_bits=activation_bits, lanes=lanes)
    write(design, output)
    if as_json:
        console.emit_json(description(design))
        return
    top = f"{design.name}_testbench"
    said = [
        f"wrote {output}: structure {design.structure}, {design.lanes} lanes",
        f"bits: {design.sum_bits} of a sum of {design.group} products, {design.total_bits} of {design.groups} scaled sums",
        f"test it: cd {output} && verilator --binary --timing --top-module {top} *.sv && obj_dir/V{top}",
    ]
    console.stdout().print("\n".join(said), highlight=False, soft_wrap=True)


SCHEMES = "pot2,pot3,pot3s,pot4,mxpot,apot4,int3,int4"


@hardware.command("report")
def report(
    model: Annotated[str, typer.Argument(help="Full-precision folder, .gguf file, hub name, or smollm2.")],
    text: Annotated[
        str, typer.Option(help="A file, wikitext2, tinystories, a dataset as name:config:split, or pydoc (help topics).")
    ],
    schemes: Annotated[str, typer.Option(help="Presets with commas between; overrides like pot4:group_size=32.")] = SCHEMES,
    activation_bits: Annotated[str, typer.Option(help="Bits of activations, with commas between.")] = "8",
    layer: Annotated[
        str | None, typer.Option(help="The linear whose products are counted. Default: the one in the middle.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens per window of --text. Default: 2048 or the model's limit.")
    ] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Only the first so many windows. Default: all.")] = None,
    dtype: Annotated[str, typer.Option(help="What the model computes in.")] = "auto",
    resume: Annotated[
        Path | None, typer.Option(help="JSON file that perplexities are kept in, and taken from if measured.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the frontiers as PNG (needs matplotlib).")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the points as JSON on stdout.")] = False,
) -> None:
    """Perplexity of a model's variants against area, toggles and bytes of their circuits, and which nothing beats.

    potq hardware report smollm2 --text wikitext2 --windows 8 --schemes pot3,pot3s,mxpot,int4 --plot frontier.png

    Weights are rounded to nearest, activations for each token and group. Needs yosys, OpenSTA and OSU018's cells.
    """
    console.refuse_two_forms(as_json=as_json, as_markdown=as_markdown)
    found, bits = parse_schemes(schemes), _bits(activation_bits)
    content = _checked(model, dtype, resume, plot, text)
    console.quiet_libraries()
    from potq.checkpoint.loading import load, load_tokenizer
    from potq.data.tokens import tokenize
    from potq.evaluate.compare import KeptRows, Protocol
    from potq.hardware import report as shown
    from potq.hardware.gates.frontier import check_schemes, frontier

    check_schemes(found, bits)
    with console.status(f"loading {model}"):
        tokens, loaded = tokenize(load_tokenizer(model), content), load(model, dtype=dtype)
    protocol, kept = Protocol(tokens, window, windows), KeptRows(resume)
    progress = console.progress_bar
    base, points = frontier(loaded, protocol, found, activation_bits=bits, layer=layer, kept=kept, progress=progress)
    protocol_line = f"{len(base.window_nll)} windows of {base.window} tokens; full precision {base.perplexity:.2f}"
    title = f"{model} on {text}: {protocol_line}"
    show_measured(
        title,
        lambda: {"model": model, "text": text, **shown.to_dict(base, points)},
        lambda: shown.markdown(points),
        lambda: shown.table(points),
        as_json=as_json,
        as_markdown=as_markdown,
    )
    if plot is not None:
        shown.plot(base, points, plot, title)
        console.stderr.print(f"wrote {plot}", highlight=False)


def _bits(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"invalid --activation-bits {text}; write numbers with commas between, such as 8,4") from None


def _checked(model: str, dtype: str, resume: Path | None, plot: Path | None, text: str) -> str:
    """The text, after a look at all that can be wrong before torch is loaded."""
    from potq.data.text import read_text
    from potq.hardware.gates import tools

    tools.require("yosys", "sta", cells=True)
    check_measured(model, dtype, resume, plot)
    return read_text(text)
