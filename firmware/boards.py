"""Boards: how a program is built for each, and what runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from firmware.simulation import System, ibex, picorv32, serv

if TYPE_CHECKING:
    from potq.hardware.kernels import Core

_RISCV = ("riscv_start.S",)


@dataclass(frozen=True)
class Board:
    """A board.

    Attributes:
        core: whose kernels the model gets.
        compiler: a GCC.
        options: of compiler and linker.
        name: of its C file and linker script.
        others: further sources.
        emulator: a command that takes the ELF file last, or a core that is simulated.
    """

    core: Core
    compiler: str
    options: tuple[str, ...]
    name: str
    emulator: tuple[str, ...] | System
    others: tuple[str, ...] = ()

    @property
    def tools(self) -> tuple[str, ...]:
        """Programs that building and running needs."""
        return (self.compiler, "verilator" if isinstance(self.emulator, System) else self.emulator[0])


def _arm(board: str, cpu: Core) -> Board:
    options = "-icount shift=0 -nographic -semihosting-config enable=on -kernel"
    emulator = ("qemu-system-arm", "-M", board, *options.split())
    return Board(cpu, "arm-none-eabi-gcc", (f"-mcpu={cpu}", "-mthumb"), "cortex_m", emulator=emulator)


def _simulated(core: Core, architecture: str, system: System) -> Board:
    options = (f"-march={architecture}", "-mabi=ilp32")
    return Board(core, "riscv64-unknown-elf-gcc", options, "simulated", system, _RISCV)


BOARDS = {
    "cortex-m3": _arm("mps2-an385", "cortex-m3"),
    "cortex-m4": _arm("mps2-an386", "cortex-m4"),
    "riscv32": Board(
        "ibex",
        "riscv64-unknown-elf-gcc",
        ("-march=rv32imc", "-mabi=ilp32"),
        "riscv_virt",
        ("qemu-system-riscv32", "-M", "virt", "-icount", "shift=0", "-nographic", "-bios", "none", "-kernel"),
        _RISCV,
    ),
    "picorv32": _simulated("rv32i", "rv32i", picorv32("-GBARREL=1")),
    "picorv32-mul": _simulated("rv32im", "rv32im", picorv32("-GBARREL=1", "-GFAST=1")),
    "ibex": _simulated("ibex", "rv32im", ibex("-GMULTIPLIER=3")),
    "serv": _simulated("serv", "rv32i", serv()),
}
"""By name."""
