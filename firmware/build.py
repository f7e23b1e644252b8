"""Build firmware that tells a story, and run it in an emulator.

    python -m firmware.build MODEL BOARD OUTPUT [--prompt TEXT] [--tokens N] [--run]

MODEL is a packed checkpoint. Boards: cortex-m3, cortex-m4 (QEMU's mps2-an385, mps2-an386), riscv32 (QEMU's virt), picorv32,
picorv32-mul, ibex and serv (simulated by Verilator; PyPI's pythondata-cpu-picorv32, -ibex and -serv have their Verilog).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from firmware.boards import BOARDS, Board
from firmware.simulation import System, simulator

HERE = Path(__file__).parent


def build(program: Path, board: Board, output: Path, *, main: Path = HERE / "tell.c", defines: tuple[str, ...] = ()) -> Path:
    """Compile a folder that ``potq export --to c`` wrote; returns the ELF file in the folder ``output``.

    Raises:
        SystemExit: no compiler.
    """
    _require(board.compiler)
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
    """What the firmware writes.

    Raises:
        SystemExit: no emulator.
    """
    _require(board.tools[1])
    if isinstance(board.emulator, System):
        command = [str(simulator(board.emulator, elf.parent)), f"+image={_image(elf, board)}"]
    else:
        command = [*board.emulator, str(elf)]
    done = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return done.stdout.decode(errors="replace").replace("\r", "")


def _require(tool: str) -> None:
    if shutil.which(tool) is None:
        raise SystemExit(f"{tool} is not installed; firmware/README.md names the package")


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
    try:
        export = CExport(potq.load(words.model), potq.load_tokenizer(words.model), core=board.core, context=256)
    except potq.PotqError as error:
        parser.error(str(error))
    print(export.report.summary())
    export.write(words.output / "program", force=True)
    prompt = words.prompt.replace("\\", "\\\\").replace('"', '\\"')
    elf = build(words.output / "program", board, words.output, defines=(f'PROMPT="{prompt}"', f"TOKENS={words.tokens}"))
    print(f"built {elf}")
    if words.run:
        print(run(elf, board))


if __name__ == "__main__":
    main()
