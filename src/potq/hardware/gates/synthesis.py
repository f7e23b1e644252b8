"""A module as gates: area, delay and netlist by yosys and OpenSTA on standard cells; look-up tables of FPGAs by yosys."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from potq.errors import MissingDependencyError
from potq.hardware.gates import tools

MAPPING = "+strash;ifraig;scorr;dc2;dch,-f;amap,-m;topo"
"""abc's script. Its area-oriented mapper leaves 12 to 15 % less area than yosys' own, for shifts and multipliers alike."""

BUFFERED = f"{MAPPING};buffer,-c,-N,12;topo;upsize;dnsize;topo"
"""For whole processors, some of whose nets have a thousand readers: no net keeps more than 12; gates on long paths grow."""

Family = Literal["ice40", "xc7"]
FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True)
class Gates:
    """A module on standard cells.

    Attributes:
        area: in square micrometres.
        delay: of the longest path, in nanoseconds, clock to register or input to register.
        netlist: yosys' JSON of the module.
    """

    area: float
    delay: float
    netlist: dict[str, Any]


@dataclass(frozen=True)
class Blocks:
    """A module on an FPGA: look-up tables, carry cells, registers and multiplier blocks."""

    luts: int
    carries: int
    registers: int
    dsps: int


def gates(verilog: str, top: str, *, parameters: Mapping[str, int] = MappingProxyType({}), mapping: str = MAPPING) -> Gates:
    """Map ``top`` of SystemVerilog to the standard cells, flat.

    Args:
        parameters: of ``top``, other than their defaults.
        mapping: abc's script, :data:`MAPPING` or :data:`BUFFERED`.

    Raises:
        MissingDependencyError: yosys, OpenSTA or the cells are not here, or fail.
    """
    tools.require("yosys", "sta", cells=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = _mapped(verilog, top, folder, ("yosys",), parameters, mapping)
        netlist = json.loads((folder / "netlist.json").read_text(encoding="utf-8"))["modules"][top]
        return Gates(found, _delay(folder, top), netlist)


def area(verilog: str, top: str, yosys: Sequence[str] = ("yosys",)) -> float:
    """The area of ``top`` alone, mapped by any yosys: ``yosys`` is the command.

    Raises:
        MissingDependencyError: yosys or the cells are not here, or fail.
    """
    tools.require(cells=True)
    with tempfile.TemporaryDirectory() as temporary:
        return _mapped(verilog, top, Path(temporary), yosys)


def _mapped(
    verilog: str,
    top: str,
    folder: Path,
    yosys: Sequence[str],
    parameters: Mapping[str, int] = MappingProxyType({}),
    mapping: str = MAPPING,
) -> float:
    """The area; the netlist is written to ``folder``."""
    (folder / "in.sv").write_text(verilog, encoding="utf-8")
    script = [
        "read_verilog -sv in.sv",
        *(f"chparam -set {name} {value} {top}" for name, value in parameters.items()),
        f"synth -flatten -top {top}",
        f"dfflibmap -liberty {tools.CELLS}",
        f"abc -liberty {tools.CELLS} -script {mapping}",
        "opt_clean",
        f"tee -o stat.txt stat -liberty {tools.CELLS}",
        "write_json netlist.json",
        "write_verilog -noattr -noexpr netlist.v",
    ]
    tools.call([*yosys, "-q", "-p", "; ".join(script)], folder)
    return _found(r"Chip area.*: ([\d.]+)", (folder / "stat.txt").read_text(encoding="utf-8"))


def blocks(verilog: str, top: str, family: Family, *, dsp: bool = False) -> Blocks:
    """Map ``top`` to an FPGA's cells: Lattice iCE40, or Xilinx 7 series.

    Raises:
        MissingDependencyError: yosys is not here, or fails.
    """
    tools.require("yosys")
    flow = {
        "ice40": f"synth_ice40 {'-dsp ' if dsp else ''}-top {top}",
        "xc7": f"synth_xilinx -family xc7 -noiopad -noclkbuf -flatten {'' if dsp else '-nodsp '}-top {top}",
    }[family]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in.sv").write_text(verilog, encoding="utf-8")
        script = f"read_verilog -sv in.sv; {flow}; write_json netlist.json"
        tools.call(["yosys", "-q", "-p", script], folder)
        cells = json.loads((folder / "netlist.json").read_text(encoding="utf-8"))["modules"][top]["cells"].values()
    kinds = [cell["type"] for cell in cells]
    return Blocks(
        luts=sum(re.fullmatch(r"LUT\d|SB_LUT4|INV", kind) is not None for kind in kinds),
        carries=sum(kind in ("SB_CARRY", "CARRY4") for kind in kinds),
        registers=sum(re.match(r"SB_DFF|FD[RSCP]E", kind) is not None for kind in kinds),
        dsps=sum(kind in ("SB_MAC16", "DSP48E1") for kind in kinds),
    )


def _delay(folder: Path, top: str) -> float:
    script = [
        f"read_liberty {tools.CELLS}",
        "read_verilog netlist.v",
        f"link_design {top}",
        "create_clock -name clock -period 10 [get_ports clock]",
        "set_input_delay 0 -clock clock [all_inputs]",
        "set_input_transition 0.1 [all_inputs]",
        "report_checks -path_delay max -format full",
    ]
    (folder / "delay.tcl").write_text("\n".join(script) + "\n", encoding="utf-8")
    return _found(r"([\d.]+)\s+data arrival time", tools.call(["sta", "-exit", "delay.tcl"], folder))


def _found(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise MissingDependencyError(f"the report has no {pattern!r}; is the program another version?\n{text[-1000:]}")
    return float(found.group(1))
