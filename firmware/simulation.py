"""Cores in Verilog, simulated by Verilator to the cycle, with memory that answers at once (``rtl/memory.v``)."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
from dataclasses import dataclass
from pathlib import Path

RTL = Path(__file__).with_name("rtl")
_OPTIONS = "--cc --exe --build -O3 -Wno-fatal -Wno-lint -CFLAGS -O2 -DSYNTHESIS --top-module system"


@dataclass(frozen=True)
class System:
    """A core and what is around it.

    Attributes:
        surroundings: what is around it, files of our own, in ``rtl/`` where no folder is named.
        package: of PyPI, which has the core's Verilog.
        sources: its files there, in the order of their packages; ``*`` stands for any name.
        includes: folders there with files that others include.
        parameters: options of Verilator: ``-GNAME=VALUE`` gives the module ``system`` a parameter.
    """

    surroundings: tuple[str | Path, ...]
    package: str
    sources: tuple[str, ...]
    includes: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self._module) is not None

    @property
    def _module(self) -> str:
        return self.package.replace("-", "_")

    def folder(self) -> Path:
        """Of the package.

        Raises:
            SystemExit: it is not installed.
        """
        found = importlib.util.find_spec(self._module)
        if found is None or found.origin is None:
            raise SystemExit(f"the core's Verilog is missing: pip install {self.package}")
        return Path(found.origin).parent


_PRIM = "system_verilog/vendor/lowrisc_ip/ip/prim/rtl"
_IBEX: tuple[str, ...] = (
    "alu",
    "compressed_decoder",
    "controller",
    "counter",
    "csr",
    "cs_registers",
    "decoder",
    "ex_block",
    "id_stage",
)
_IBEX += ("if_stage", "load_store_unit", "multdiv_slow", "multdiv_fast", "prefetch_buffer", "fetch_fifo")
_IBEX += ("register_file_ff", "wb_stage", "core", "top")


def picorv32(*parameters: str, coprocessor: Path | None = None) -> System:
    """PicoRV32; at its port, the module ``unit_coprocessor`` of a file, if one is given."""
    files: tuple[str | Path, ...] = ("processor.v", "picorv32.v")
    if coprocessor is not None:
        files += (coprocessor,)
        parameters += ("-DCOPROCESSOR=unit_coprocessor",)
    return System(files, "pythondata-cpu-picorv32", ("verilog/picorv32.v",), parameters=parameters)


def ibex(*parameters: str) -> System:
    """lowRISC's Ibex."""
    packages = ("ram_1p", "secded", "cipher", "mubi", "util")
    sources = ("system_verilog/rtl/ibex_pkg.sv", *(f"{_PRIM}/prim_{name}_pkg.sv" for name in packages))
    sources += tuple(f"system_verilog/rtl/ibex_{name}.sv" for name in _IBEX)
    includes = (_PRIM, "system_verilog/vendor/lowrisc_ip/dv/sv/dv_utils")
    return System(("ibex.sv",), "pythondata-cpu-ibex", sources, includes, parameters)


def serv() -> System:
    """SERV, which computes a bit a cycle."""
    return System(("serv.v",), "pythondata-cpu-serv", ("verilog/rtl/serv_*.v",))


def simulator(system: System, output: Path) -> Path:
    """Build it with Verilator, unless the folder has it of the same sources; returns the program.

    Raises:
        SystemExit: the core is not installed.
    """
    program = output / "simulator" / "Vsystem"
    folder, mark = system.folder(), program.with_name("sources")
    files = [file for pattern in system.sources for file in sorted(folder.glob(pattern))]
    files += [RTL / "memory.v", *(RTL / file for file in system.surroundings), RTL / "simulate.cpp"]
    digest = hashlib.blake2b(repr(system.parameters).encode())
    for file in files:
        digest.update(file.read_bytes())
    if not program.exists() or not mark.exists() or mark.read_text() != digest.hexdigest():
        program.parent.mkdir(parents=True, exist_ok=True)
        command = ["verilator", *_OPTIONS.split(), *system.parameters, "--Mdir", program.parent]
        command += [*(f"-I{folder / name}" for name in system.includes), *files]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        mark.write_text(digest.hexdigest())
    return program
