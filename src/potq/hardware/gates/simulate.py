"""The testbench of a design, built and run by Verilator."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from potq.hardware.gates import tools
from potq.hardware.rtl.design import Design
from potq.hardware.rtl.write import write

_FAST_BUILD = "OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0"  # compiling takes far longer than running
_LINE = re.compile(r"^\w+_(\w+): (\d+) vectors, (\d+) differ$", re.MULTILINE)


def simulate(design: Design) -> dict[str, tuple[int, int]]:
    """How many vectors each module of a design was given, and for how many it gave another result than Python.

    Raises:
        MissingDependencyError: Verilator, or a C++ compiler, is not here or fails.
    """
    tools.require("verilator")
    with tempfile.TemporaryDirectory() as temporary:
        folder = write(design, Path(temporary) / "rtl")
        top = f"{design.name}_testbench"
        files = sorted(path.name for path in folder.glob("*.sv"))
        warnings = ["-Wall", "-Wno-UNUSEDSIGNAL"]  # a shifter's outermost bits may have no reader
        build = ["verilator", "--binary", "--timing", *warnings, "--top-module", top, "-o", "simulation"]
        tools.call([*build, "-MAKEFLAGS", _FAST_BUILD, *files], folder)
        program = os.fspath(folder / "obj_dir" / "simulation")
        said = tools.call([program], folder, may_fail=True)
    return {kind: (int(vectors), int(differing)) for kind, vectors, differing in _LINE.findall(said)}
