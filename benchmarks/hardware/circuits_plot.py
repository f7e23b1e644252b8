"""The units as block diagrams: products of PoT and integers, the dot product, the co-processor. Widths are the designs'."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.plots import picture
from benchmarks.hardware.units import GROUP
from potq.hardware.rtl.coprocessor import LOADED, lanes_of
from potq.hardware.rtl.design import Design, design_of
from potq.hardware.rtl.product import Structure
from potq.numerics.scheme import QuantScheme

POT, WIRE, STORED = "#cfe3f7", "#fbe6c9", "#d9ead3"
"""Colours of logic, of what only connects, and of registers."""
Block = tuple[str, str]
"""Text and colour."""
_HEIGHT, _GAP = 0.62, 0.32


def draw(path: Path) -> str:
    """Draw to ``path``; says where, or why not."""
    return picture(path, (11, 6.4), _paint)


def _paint(figure: Any) -> None:
    axes = figure.add_subplot()
    rows = [
        ("one product, pot4", shifted(_design("pot4", "shift"))),
        ("one product, int4", multiplied(_design("int4", "booth"))),
        ("dot product, pot4", summed(_design("pot4", "shift"))),
        ("co-processor, pot4", attached(_design("pot4:scale_dtype=e8m0", "shift"))),
    ]
    for place, (title, blocks) in enumerate(rows):
        _row(axes, -1.25 * place, title, blocks)
    axes.set_xlim(0, 10.2)
    axes.set_ylim(-1.25 * (len(rows) - 1) - 0.6, 0.9)
    axes.set_axis_off()


def _design(scheme: str, structure: Structure) -> Design:
    quantization = QuantScheme(scheme, group_size=GROUP)
    return design_of(quantization, name="unit", structure=structure, lanes=lanes_of(quantization.grid.bits))


def _widths(design: Design, pattern: str) -> dict[str, int]:
    """Of the signals of a product whose names match."""
    text = "\n".join(design.product.lines)
    return {name: int(top) + 1 for top, name in re.findall(rf"wire \[(\d+):0\] ({pattern}) ?=", text)}


def _given(design: Design) -> list[Block]:
    return [(f"activation\n{design.activation_bits} bits", WIRE)]


def shifted(design: Design) -> list[Block]:
    """Kept or turned, then a stage for every bit of the distance."""
    stages = _widths(design, r"shifted\d+")
    steps = [(f"shift by 0 or {name.removeprefix('shifted')}\n{width} bits", POT) for name, width in stages.items()]
    turned = (f"keep, invert\nor clear\n{design.activation_bits} gates", POT)
    return [*_given(design), turned, *steps, (f"{len(design.product.terms)} terms:\nshifted, sign", WIRE)]


def multiplied(design: Design) -> list[Block]:
    """A row for every two bits of the code."""
    rows = _widths(design, r"row_\d+")
    parts = (f"{len(rows)} rows: -2 to 2\ntimes activation\n{max(rows.values())} bits each", POT)
    recoded = (f"recode {design.grid.bits} bits\ninto {len(rows)} digits", POT)
    return [*_given(design), recoded, parts, (f"{len(design.product.terms)} terms:\n{len(rows)} rows, signs", WIRE)]


def summed(design: Design) -> list[Block]:
    """All terms of all lanes, in carry-save adders."""
    terms = design.lanes * len(design.product.terms)
    return [
        (f"{design.lanes} codes,\n{design.lanes} activations", WIRE),
        (f"{design.lanes} products", POT),
        (f"tree of adders\n{terms} terms and sum", POT),
        (f"sum\n{design.sum_bits} bits\nbegins at {design.start}", STORED),
    ]


def attached(design: Design) -> list[Block]:
    """What PicoRV32 has at its port."""
    return [
        ("rs1, rs2 of\nPicoRV32", WIRE),
        (f"{design.group} activations\n{LOADED} a load", STORED),
        (f"{design.lanes} lanes, codes\nof rs1 and rs2", POT),
        (f"sum\n{design.sum_bits} bits", STORED),
        ("shift to the\nright by rs1", POT),
        ("plus rs2", POT),
        ("rd of\nPicoRV32", WIRE),
    ]


def _row(axes: Any, y: float, title: str, blocks: Sequence[Block]) -> None:
    """Boxes with arrows between them, from the left to the right."""
    from matplotlib.patches import FancyBboxPatch

    width = (10 - _GAP * (len(blocks) - 1)) / len(blocks)
    width = min(width, 1.75)
    axes.text(0.1, y + _HEIGHT / 2 + 0.08, title, fontsize=11, weight="bold", va="bottom")
    for place, (text, colour) in enumerate(blocks):
        x = 0.1 + place * (width + _GAP)
        box = FancyBboxPatch(
            (x, y - _HEIGHT / 2), width, _HEIGHT, boxstyle="round,pad=0,rounding_size=0.06", fc=colour, ec="0.3"
        )
        axes.add_patch(box)
        axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=8.5)
        if place:
            arrow = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", xy=(x, y), xytext=(x - _GAP, y), arrowprops=arrow)
