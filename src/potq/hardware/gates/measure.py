"""The figures of one design: area and delay of its modules, and how often their nets change on a stream of products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from potq.errors import ConfigError
from potq.hardware.gates.synthesis import Gates
from potq.hardware.gates.toggles import toggles
from potq.hardware.rtl import modules
from potq.hardware.rtl.design import Design

Kind = Literal["mac", "dot", "scale"]


@dataclass(frozen=True)
class Stream:
    """Products in the order in which a unit is given them: codes and activations, whole groups of them."""

    codes: tuple[int, ...]
    activations: tuple[int, ...]


def sources_of(design: Design, kind: Kind) -> str:
    """A module as SystemVerilog, with the one that it is made of."""
    if kind == "scale":
        return modules.scale(design)
    return modules.product(design) + (modules.mac if kind == "mac" else modules.dot)(design)


def registered_mac(design: Design) -> str:
    """``NAME_registered``: a multiply-accumulate whose inputs come from registers, as routing wants them."""
    inputs = {"first": 1, "code": design.grid.bits, "activation": design.activation_bits}
    ports = [f"input  logic [{width - 1}:0] next_{name}" for name, width in inputs.items()]
    ports = ["input  logic clock", *ports, f"output logic signed [{design.sum_bits - 1}:0] sum"]
    body = [f"logic [{width - 1}:0] {name};" for name, width in inputs.items()]
    body += [f"always_ff @(posedge clock) {name} <= next_{name};" for name in inputs]
    body += [f"{design.name}_mac the_mac (.clock, .first, .code, .activation, .sum);"]
    return sources_of(design, "mac") + modules.module(design, "registered", [], ports, body)


def toggles_of(design: Design, gates: Gates, stream: Stream) -> float:
    """Changes of nets for each product of a multiply-accumulate unit (see :func:`potq.hardware.gates.toggles.toggles`).

    Raises:
        ConfigError: the stream is not of whole groups.
        ModelError: the netlist does not compute these products.
    """
    if len(stream.codes) % design.group or len(stream.codes) != len(stream.activations):
        raise ConfigError(f"a stream has whole groups of {design.group} products, found {len(stream.codes)}")
    mask = (1 << design.activation_bits) - 1
    first = [int(place % design.group == 0) for place in range(len(stream.codes))]
    inputs = {"first": first, "code": stream.codes, "activation": [x & mask for x in stream.activations]}
    return toggles(gates.netlist, inputs, "sum", _stored(design, stream)) / len(stream.codes)


def _stored(design: Design, stream: Stream) -> Sequence[int]:
    """What the accumulator holds before the first product, and after each."""
    mask, sums = (1 << design.sum_bits) - 1, [0]
    for place, (code, activation) in enumerate(zip(stream.codes, stream.activations, strict=True)):
        before = design.start if place % design.group == 0 else sums[-1]
        sums.append((before + design.grid.levels[code] * activation - design.product.constant) & mask)
    return sums
