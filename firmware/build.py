"""Build firmware that tells a story, and run it in an emulator.

    python -m firmware.build MODEL BOARD OUTPUT [--prompt TEXT] [--tokens N] [--run]

MODEL is a packed checkpoint. Boards: cortex-m3, cortex-m4 (QEMU's mps2-an385, mps2-an386), riscv32 (QEMU's virt), picorv32
and picorv32-mul (simulated by Verilator; the core's Verilog is in PyPI's pythondata-cpu-picorv32, or where PICORV32 says).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potq.hardware.kernels import Core

HERE = Path(__file__).parent
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
        emulator: a command that takes the ELF file last; None for Verilator.
        parameters: of the simulated system.
    """

    core: Core
    compiler: str
    options: tuple[str, ...]
    name: str
    others: tuple[str, ...] = ()
    emulator: tuple[str, ...] | None = None
    parameters: tuple[str, ...] = ()

    @property
    def tools(self) -> tuple[str, ...]:
        """Programs that building and running needs."""
        return (self.compiler, self.emulator[0] if self.emulator else "verilator")


def _arm(board: str, cpu: Core) -> Board:
    emulator = ("qemu-system-arm", "-M", board, "-nographic", "-semihosting-config", "enable=on", "-kernel")
    return Board(cpu, "arm-none-eabi-gcc", (f"-mcpu={cpu}", "-mthumb"), "cortex_m", emulator=emulator)


def _picorv32(core: Core, *parameters: str) -> Board:
    options = (f"-march={core}", "-mabi=ilp32")
    return Board(core, "riscv64-unknown-elf-gcc", options, "picorv32", _RISCV, None, ("-GBARREL=1", *parameters))


BOARDS = {
    "cortex-m3": _arm("mps2-an385", "cortex-m3"),
    "cortex-m4": _arm("mps2-an386", "cortex-m4"),
    "riscv32": Board(
        "ibex",
        "riscv64-unknown-elf-gcc",
        ("-march=rv32imc", "-mabi=ilp32"),
        "riscv_virt",
        _RISCV,
        ("qemu-system-riscv32", "-M", "virt", "-nographic", "-bios", "none", "-kernel"),
    ),
    "picorv32": _picorv32("rv32i"),
    "picorv32-mul": _picorv32("rv32im", "-GFAST=1"),
}
"""By name."""


def build(program: Path, board: Board, output: Path, *, main: Path = HERE / "tell.c", defines: tuple[str, ...] = ()) -> Path:
    """Compile a folder that ``potq export --to c`` wrote; returns the ELF file in the folder ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    sources = [file for file in sorted(program.glob("*.c")) if file.name != "main.c"]
    sources += [main, HERE / "memory.c", HERE / f"{board.name}.c", *(HERE / name for name in board.others)]
    options = ["-O2", "-std=gnu99", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-tree-loop-distribute-patterns"]
    options += [*board.options, *(f"-D{define}" for define in defines), f"-I{program}", f"-I{HERE}"]
    link = ["-nostdlib", f"-Wl,-T,{HERE / board.name}.ld", "-Wl,--no-warn-rwx-segments", "-lgcc"]
    elf = output / "firmware.elf"
    subprocess.run(list(map(str, [board.compiler, *options, *sources, "-o", elf, *link])), check=True)
    return elf


def run(elf: Path, board: Board) -> str:
    """What the firmware writes."""
    if board.emulator is not None:
        command = [*board.emulator, str(elf)]
    else:
        command = [str(simulator(board, elf.parent)), f"+image={_image(elf, board)}"]
    done = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return done.stdout.decode(errors="replace").replace("\r", "")


def simulator(board: Board, output: Path) -> Path:
    """Build the simulated system with Verilator, once a folder."""
    program = output / "simulator" / "Vsystem"
    if not program.exists():
        command = [
            "verilator",
            "--cc",
            "--exe",
            "--build",
            "-O3",
            "-Wno-fatal",
            "-Wno-lint",
            "-CFLAGS",
            "-O2",
            "--top-module",
            "system",
        ]
        command += [*board.parameters, "--Mdir", str(program.parent)]
        command += [str(HERE / "picorv32.v"), str(HERE / "processor.v"), str(picorv32()), str(HERE / "simulate.cpp")]
        subprocess.run(command, check=True, capture_output=True)
    return program


def picorv32() -> Path:
    """The core's Verilog."""
    if "PICORV32" in os.environ:
        return Path(os.environ["PICORV32"])
    package = importlib.util.find_spec("pythondata_cpu_picorv32")
    if package is None or package.origin is None:
        raise SystemExit("pip install pythondata-cpu-picorv32, or set PICORV32 to picorv32.v")
    return Path(package.origin).parent / "verilog" / "picorv32.v"


def _image(elf: Path, board: Board) -> Path:
    """The words of memory, in hexadecimal, as $readmemh reads them."""
    binary, image = elf.with_suffix(".bin"), elf.with_suffix(".hex")
    objcopy = board.compiler.replace("gcc", "objcopy")
    subprocess.run([objcopy, "-O", "binary", str(elf), str(binary)], check=True)
    content = binary.read_bytes()
    content += bytes(-len(content) % 4)
    words = (int.from_bytes(content[start : start + 4], "little") for start in range(0, len(content), 4))
    image.write_text("\n".join(f"{word:08x}" for word in words) + "\n")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("board", choices=BOARDS)
    parser.add_argument("output", type=Path)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--run", action="store_true", help="run it in the emulator")
    words = parser.parse_args()

    import potq
    from potq.export.c import CExport

    board = BOARDS[words.board]
    export = CExport(potq.load(words.model), potq.load_tokenizer(words.model), core=board.core, context=256)
    print(export.report.summary())
    export.write(words.output / "program", force=True)
    prompt = words.prompt.replace("\\", "\\\\").replace('"', '\\"')
    elf = build(words.output / "program", board, words.output, defines=(f'PROMPT="{prompt}"', f"TOKENS={words.tokens}"))
    print(f"built {elf}")
    if words.run:
        print(run(elf, board))


if __name__ == "__main__":
    main()
