"""Programs of other projects that this room calls: where they are, and what to install where they are not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from potq.errors import MissingDependencyError

PACKAGES = {
    "yosys": "yosys",
    "sta": "opensta",
    "verilator": "verilator",
    "nextpnr-ice40": "nextpnr-ice40",
    "icetime": "fpga-icestorm",
}
"""The Debian package that has a program."""

CELLS = Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib")
"""Oklahoma State University's standard cells for 180 nm, of the package ``qflow-tech-osu018``."""


def missing(*programs: str, cells: bool = False) -> str | None:
    """What to install for these programs, and the standard cells; None where all is there."""
    packages = [PACKAGES[program] for program in programs if shutil.which(program) is None]
    if cells and not CELLS.exists():
        packages.append("qflow-tech-osu018")
    return f"apt-get install {' '.join(packages)} (Debian, Ubuntu)" if packages else None


def require(*programs: str, cells: bool = False) -> None:
    """Raise MissingDependencyError, with the line that installs what is missing."""
    line = missing(*programs, cells=cells)
    if line is not None:
        raise MissingDependencyError(f"circuits are measured by programs that are not here: {line}")


def call(command: Sequence[str], folder: Path, *, may_fail: bool = False) -> str:
    """What a program prints on stdout, run in ``folder``; with ``may_fail`` also one that ends with an error.

    Raises:
        MissingDependencyError: it is not here, or fails, as another version may.
    """
    if command[0] in PACKAGES:
        require(command[0])
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode and not may_fail:
        said = (ended.stderr.strip() or ended.stdout.strip())[-2000:]
        raise MissingDependencyError(f"{command[0]} failed with status {ended.returncode}; is it another version?\n{said}")
    return ended.stdout
