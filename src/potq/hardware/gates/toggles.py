"""How often the nets of a netlist change while it sums products: a proxy of its power, without glitches and capacitances.

The netlist is computed for all cycles at once. The register's contents are known beforehand, from Python's integers. So
what it is about to store can be compared with what it should: a netlist that computes something else is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potq.errors import ModelError
from potq.hardware.gates import tools

Bits = NDArray[np.bool_]
"""One signal's value in every cycle."""


def toggles(netlist: Mapping[str, Any], inputs: Mapping[str, Sequence[int]], register: str, stored: Sequence[int]) -> int:
    """Changes of all nets but the clock, from the first cycle to the last.

    Args:
        netlist: a module of yosys' JSON, on the standard cells.
        inputs: the value of every input but the clock, by its name, for each of n cycles.
        register: the output that is the module's only register.
        stored: its n + 1 values, the first cycle's and those after each.

    Raises:
        ModelError: the netlist stores something else.
    """
    cycles = len(stored) - 1
    nets: dict[Any, Bits] = {"0": np.zeros(cycles, bool), "1": np.ones(cycles, bool), "x": np.zeros(cycles, bool)}
    for name, values in (*inputs.items(), (register, stored[:-1])):
        for place, net in enumerate(netlist["ports"][name]["bits"]):
            nets.setdefault(net, _bit(values, place))
    _settle(netlist, nets)
    _compare(netlist, nets, register, stored)
    changing = [values for net, values in nets.items() if net not in ("0", "1", "x")]
    return sum(int(np.count_nonzero(values[1:] != values[:-1])) for values in changing)


def _bit(values: Sequence[int], place: int) -> Bits:
    return np.fromiter((value >> place & 1 for value in values), bool, len(values))


def _settle(netlist: Mapping[str, Any], nets: dict[Any, Bits]) -> None:
    """Compute every gate, each after those that feed it."""
    gates = {}
    for cell in netlist["cells"].values():
        function = functions().get(cell["type"])
        if function is not None:
            pins = {pin: bits[0] for pin, bits in cell["connections"].items()}
            gates[pins.pop(function[0])] = (function[1], pins)
    for net in TopologicalSorter({net: set(pins.values()) for net, (_, pins) in gates.items()}).static_order():
        if net in gates:
            compute, pins = gates[net]
            nets[net] = compute({pin: nets[source] for pin, source in pins.items()})


def _compare(netlist: Mapping[str, Any], nets: Mapping[Any, Bits], register: str, stored: Sequence[int]) -> None:
    places = {net: place for place, net in enumerate(netlist["ports"][register]["bits"])}
    for cell in netlist["cells"].values():
        if cell["type"] not in functions():
            arriving, leaving = (cell["connections"][pin][0] for pin in ("D", "Q"))
            if not np.array_equal(nets[arriving], _bit(stored[1:], places[leaving])):
                raise ModelError(f"bit {places[leaving]} of {register} is not what Python computes; the netlist is wrong")


Compute = Callable[[Mapping[str, Bits]], Bits]


@cache
def functions() -> dict[str, tuple[str, Compute]]:
    """The output and the function of every gate of the standard cells; registers are not among them."""
    text = tools.CELLS.read_text(encoding="utf-8")
    found = {}
    for cell in re.split(r"^cell \((?=\w+\))", text, flags=re.MULTILINE)[1:]:
        name = cell[: cell.index(")")]
        outputs = re.findall(r'pin\((\w+)\)\s*\{\s*direction : output;[^}]*?function : "([^"]*)"', cell)
        if len(outputs) == 1 and "ff (" not in cell and "latch (" not in cell:
            found[name] = (outputs[0][0], _compiled(outputs[0][1]))
    return found


def _compiled(function: str) -> Compute:
    """Liberty's notation: ``!`` not, a space and, ``+`` or, ``^`` exclusive or."""
    spaced = re.sub(r"(?<=[\w)])\s+(?=[\w(!])", " & ", function.strip())
    python = spaced.replace("!", "~").replace("+", "|")
    if not re.fullmatch(r"[\w\s()~&|^]*", python):
        raise ModelError(f"{tools.CELLS} has a function that is not understood: {function}")
    code = compile(python, "liberty", "eval")
    return lambda pins: np.asarray(eval(code, {"__builtins__": {}}, dict(pins)))
