"""A unit on a small FPGA, placed and routed by nextpnr: logic cells, and how fast a clock may be."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from potq.hardware.gates import tools

DEVICE = ("--hx8k", "--package", "ct256")


@dataclass(frozen=True)
class Routed:
    """A module on an iCE40 HX8K: logic cells, and the largest frequency of its clock in MHz."""

    cells: int
    megahertz: float


def routed(verilog: str, top: str, *, seeds: Sequence[int] = (1, 2, 3)) -> Routed:
    """Place and route ``top``, whose inputs are registered; the median over ``seeds``, for placement begins at random.

    Raises:
        MissingDependencyError: yosys or nextpnr is not here, or fails.
    """
    tools.require("yosys", "nextpnr-ice40")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in.sv").write_text(verilog, encoding="utf-8")
        script = f"read_verilog -sv in.sv; synth_ice40 -top {top} -json netlist.json"
        tools.call(["yosys", "-q", "-p", script], folder)
        found = [_routed(folder, seed) for seed in seeds]
    return Routed(round(median(each.cells for each in found)), round(median(each.megahertz for each in found), 1))


def _routed(folder: Path, seed: int) -> Routed:
    command = ["nextpnr-ice40", *DEVICE, "--json", "netlist.json", "--seed", str(seed), "--quiet"]
    tools.call([*command, "--freq", "200", "--timing-allow-fail", "--report", "report.json"], folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (clock,) = report["fmax"].values()
    return Routed(report["utilization"]["ICESTORM_LC"]["used"], clock["achieved"])
