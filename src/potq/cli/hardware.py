"""``potq hardware``: circuits for a scheme's products."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from potq.cli import console
from potq.hardware.rtl.design import design_of
from potq.hardware.rtl.product import STRUCTURES
from potq.hardware.rtl.write import check_folder, description, write
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
