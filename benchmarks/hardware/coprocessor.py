"""A core with a co-processor: ``python -m benchmarks.hardware.coprocessor --work DIR [--data DIR]`` (``make gates``).

PicoRV32 with a sequential multiplier, and at its port a dot product and scaling on a grid, as
``potq.hardware.rtl.coprocessor`` writes them. All matrices of TinyStories-656K, embedding and head too, are on that grid.
Cycles of its first token in Verilator, whose logits are compared with the integer model's; area and delay of core and
co-processor together; perplexity of the integer model, with weights rounded to nearest (``fast``) and calibrated
(``balanced``).

Wants yosys, OpenSTA, OSU018, Verilator, gcc-riscv64-unknown-elf, pythondata-cpu-picorv32, and the rows of ``gates.py``: they
say what structure is the smallest. Every row is kept as it comes; a killed run goes on.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.hardware.coprocessor_goals import COPROCESSOR, CORE, EFFORTS
from benchmarks.hardware.cores import NO_TEXT, checksum_of, written
from benchmarks.hardware.goals import GATES, smallest
from benchmarks.ptq.settings import SEED, Setting, settings
from firmware.boards import BOARDS, Board
from firmware.build import build, run
from firmware.simulation import RTL, picorv32
from potq.config import effort_by_name
from potq.hardware import IntegerModel
from potq.hardware.gates import tools
from potq.hardware.gates.synthesis import BUFFERED, gates
from potq.hardware.kernels import FORMS
from potq.hardware.program import build_program
from potq.hardware.rtl.coprocessor import coprocessor, lanes_of
from potq.hardware.rtl.design import Design, design_of
from potq.numerics.scheme import QuantScheme

SCHEMES = (
    "int4:scale_dtype=e8m0",
    "apot4:scale_dtype=e8m0",
    "pot3:scale_dtype=e8m0",
    "int4",
    "apot4",
    "pot4:scale_dtype=e8m0",
    "int8:group_size=64:scale_dtype=e8m0",
    "pot3s",
    "mxpot:group_size=64",
    "int3:scale_dtype=e8m0",
    "mxfp4:group_size=64",
    "pot4",
    "pot2:scale_dtype=e8m0",
)
PARAMETERS = {"BARREL": 1, "MULTIPLIER": 1}
WINDOW, WINDOWS = 512, 16
PROTOCOL = {
    "core": "PicoRV32, rv32im with sequential multiplier, barrel shifter, no counters; memory answers at once",
    "cycles": "of the first token of TinyStories-656K, embedding to logits; every matrix on the scheme's grid",
    "area": "OSU018 (180 nm) without memories; yosys, abc with amap, fan-out of 12; delay by OpenSTA",
    "perplexity": f"of the integer model, {WINDOWS} windows of {WINDOW}, stories with their start tokens",
}


def design(scheme: QuantScheme) -> Design:
    """In the structure of the smallest dot product."""
    found = smallest(GATES.read()["rows"], "dot", scheme.name.split("-")[0])
    structure = found["structure"] if found else None
    return design_of(scheme, name="unit", structure=structure, lanes=lanes_of(scheme.grid.bits))


def board(unit: Path | None) -> Board:
    """The simulated system, with the co-processor of this file."""
    given = (f"-G{name}={value}" for name, value in PARAMETERS.items())
    return replace(BOARDS["picorv32-mul"], emulator=picorv32(*given, coprocessor=unit))


def quantized(setting: Setting, scheme: QuantScheme, effort: str) -> IntegerModel:
    """All matrices on one grid."""
    model, chosen = potq.load(setting.source), effort_by_name(effort)
    batches = setting.batches() if chosen.calibrated else None
    potq.quantize(model, potq.PoTConfig(scheme=scheme, embedding=scheme, effort=chosen), batches, seed=SEED)
    return IntegerModel.from_packed(model, context=WINDOW)


def cycles(model: IntegerModel, scheme: QuantScheme, unit: Path | None, work: Path) -> int:
    """Of a token, whose logits are the integer model's; without a unit by the cheapest kernels.

    Raises:
        SystemExit: they are not.
    """
    system = board(unit)
    form = FORMS["add_bytes" if scheme.grid.bits == 8 else "buckets"] if unit else None  # for the layout of its codes
    program = build_program(model, NO_TEXT, ends=[], core="rv32im", forms=lambda _: form)
    defines: tuple[str, ...] = ()
    if unit is not None:
        defines = (
            'POTQ_TOTALS="coprocessor.h"',
            f"POTQ_UNIT_BITS={scheme.grid.bits}",
            f"POTQ_UNIT_GROUP={scheme.group_size}",
        )
        defines += (f"POTQ_UNIT_SHIFTS={int(scheme.scale_dtype != 'float16')}",)
    elf = build(written(program, work), system, work, main=Path(__file__).with_name("token.c"), defines=defines)
    found, checksum = (int(word, 16) for word in run(elf, system).split())
    if checksum != checksum_of(model.logits([1])[0]):
        raise SystemExit(f"{scheme.name}: the co-processor does not give what the integer model gives")
    return found


def on_cells(unit: str) -> Row:
    """Area and delay of core and co-processor; of the core alone without one."""
    named = "`define COPROCESSOR unit_coprocessor\n" if unit else ""
    core, system = picorv32(), (RTL / "processor.v").read_text(encoding="utf-8")
    text = "".join((core.folder() / source).read_text(encoding="utf-8") for source in core.sources) + named + unit + system
    found = gates(text, "processor", parameters=PARAMETERS, mapping=BUFFERED)
    return {"area": found.area, "delay": found.delay}


def system(setting: Setting, name: str, work: Path) -> Row:
    """A core with a co-processor."""
    scheme = QuantScheme(name)
    built, folder = design(scheme), work / re.sub(r"\W+", "-", name)
    folder.mkdir(parents=True, exist_ok=True)
    unit = folder / "unit.sv"
    unit.write_text(coprocessor(built), encoding="utf-8")
    row = {"what": "system", "scheme": scheme.name, "structure": built.structure}
    found = cycles(quantized(setting, scheme, "fast"), scheme, unit, folder)
    return {**row, "cycles": found, **on_cells(unit.read_text(encoding="utf-8"))}


def alone(setting: Setting, work: Path) -> Row:
    """The core without one, at pot3, whose kernels are its fastest."""
    scheme = QuantScheme("pot3:scale_dtype=e8m0")
    found = cycles(quantized(setting, scheme, "fast"), scheme, None, work / "core")
    return {"what": "system", "scheme": CORE, "cycles": found, **on_cells("")}


def perplexity(setting: Setting, name: str, effort: str) -> Row:
    scheme = QuantScheme(name)
    found = quantized(setting, scheme, effort).perplexity(setting.tokens()[: WINDOW * WINDOWS], window=WINDOW)
    return {"what": "perplexity", "scheme": scheme.name, "effort": effort, "perplexity": round(found.perplexity, 4)}


def measurements(setting: Setting, work: Path) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """What is to be measured: what its row says of itself, and the row when it is asked for."""
    yield {"what": "system", "scheme": CORE}, partial(alone, setting, work)
    for name in SCHEMES:
        scheme = QuantScheme(name).name
        for effort in EFFORTS:
            yield {"what": "perplexity", "scheme": scheme, "effort": effort}, partial(perplexity, setting, name, effort)
        yield {"what": "system", "scheme": scheme}, partial(system, setting, name, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--work", type=Path, required=True, help="keeps programs and simulators")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    tools.require("yosys", "sta", "verilator", cells=True)
    setting, rows = settings(Path(options.data))["tinystories"], COPROCESSOR.load(PROTOCOL)
    for key, measured in measurements(setting, options.work.resolve()):
        if any(key.items() <= row.items() for row in rows):
            continue
        rows.append(measured())
        COPROCESSOR.write(PROTOCOL, rows)
        print(rows[-1], flush=True)
    print_goals(COPROCESSOR.judge(rows))


if __name__ == "__main__":
    main()
