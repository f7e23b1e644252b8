"""Cycles of kernels on simulated cores, true to the cycle, and instructions where an emulator has no cycles.

``python -m benchmarks.hardware.cores [--work DIR] [--data DIR] [--only CORE]``. PicoRV32, SERV and Ibex with memory that
answers at once; Cortex-M0, M3 and M4 in QEMU (instructions). A matrix has 128x128 weights in groups of 64, 8-bit inputs,
power-of-two scales. Cycles of a weight are those of the product, and of the table that is made of the inputs, over 16384.
Every product's results are compared with the integer model's. The baselines: int8 by multiplication (by the compiler's
library where there is no multiplier), int8 by a good loop of shifts and sums, int4 by every kernel, floats by the compiler's
library.

``--data`` (or POTQ_DATA) has tinystories-656k, of which a whole token is measured, the first of a text, from embedding to
logits: at pot3, int4 and int8 by the cheapest kernels, and at int8 by loops and by multiplication.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.hardware.core_boards import CORES_BY_NAME, COUNTS_INSTRUCTIONS
from benchmarks.hardware.core_goals import (
    BARREL,
    CORES,
    IBEX,
    IBEX_SLOW,
    MULTIPLIER,
    SEQUENTIAL,
    SERV,
    SHAPE,
    TOKEN,
)
from firmware.boards import Board
from firmware.build import build, run
from potq.hardware import IntegerModel
from potq.hardware.fixed_point import Integers
from potq.hardware.kernels import FORMS, TOGETHER, Core, Form
from potq.hardware.matrix import IntegerMatrix
from potq.hardware.program import Program, build_program
from potq.hardware.vocabulary import NONE, Vocabulary

SIDE = 128
PARTS = ("q", "k", "v", "o", "gate", "up", "down")
CASES = (
    *(("int8", kernel) for kernel in ("multiply_bytes", "dual_bytes", "add_bytes", "planes")),
    *(("int4", kernel) for kernel in ("test_and_add", "buckets", "table", "pairs", "planes", "multiply", "dual")),
    *(("pot4", kernel) for kernel in ("shift", "buckets", "table", "pairs", "multiply", "dual")),
    *(("apot4", kernel) for kernel in ("buckets", "table", "pairs")),
    *(("pot3", kernel) for kernel in ("shift", "buckets", "table", "pairs", "multiply")),
    *(("int3", kernel) for kernel in ("test_and_add", "buckets", "table", "pairs", "planes")),
    *(("pot2", kernel) for kernel in ("shift", "buckets", "table", "planes", "multiply")),
    *(("int2", kernel) for kernel in ("test_and_add", "buckets", "planes")),
    ("pot4 float16", "shift"),
)
"""Scheme and kernel, seven to a layer."""
PROTOCOL = {
    "matrix": f"{SHAPE}, groups of 64, 8-bit inputs, power-of-two scales unless the scheme says float16",
    "cycles": "product and table of inputs; rounding of the inputs is not counted",
    "instructions": "of Cortex-M in QEMU, which has no cycles",
    "compilers": "riscv64-unknown-elf-gcc and arm-none-eabi-gcc 12.2, -O2",
    "memory": "answers at once",
    "rows at once": TOGETHER,
}
TOKENS = {
    "pot3": ("pot3", None),
    "int4": ("int4", None),
    "int8": ("int8", None),
    "loop": ("int8", "add_bytes"),
    "multiplication": ("int8", "multiply_bytes"),
}
"""Scheme, and the kernel of every matrix where it is not the cheapest."""
TOKENS_OF: Mapping[str, Sequence[str]] = {
    BARREL: ("pot3", "int4", "int8", "loop", "multiplication"),
    SEQUENTIAL: ("pot3", "multiplication"),
    MULTIPLIER: ("pot3", "multiplication"),
    IBEX_SLOW: ("pot3", "multiplication"),
    IBEX: ("pot3", "multiplication"),
    SERV: ("pot3", "loop"),  # the library's multiplication would take four billion cycles
}
LIKE: Mapping[str, Core] = {SEQUENTIAL: "rv32i"}
"""Whose costs choose the cheapest kernels, where the board's core has other ones: a slow multiplication costs more."""
NO_TEXT = Vocabulary([b""], {}, {}, [NONE] * 256, NONE, False, [], True, 0)


def scheme_of(name: str) -> str:
    """With scales that are powers of two, unless the name says otherwise."""
    plain = name.removesuffix(" float16")
    return plain if plain != name else f"{plain}:scale_dtype=e8m0"


def matrices() -> IntegerModel:
    """A model of random weights whose layers hold the cases one after the other; what is left over is the last once more."""
    layers = -(-len(CASES) // len(PARTS))
    fields = {"hidden_size": SIDE, "intermediate_size": SIDE, "num_attention_heads": 4, "vocab_size": 32}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**fields, num_hidden_layers=layers, max_position_embeddings=8)).eval()
    names = [rf"layers\.{layer}\..*\.{part}_proj" for layer in range(layers) for part in PARTS]
    schemes = [scheme_of(scheme) for scheme, _ in CASES]
    schemes += schemes[-1:] * (len(names) - len(schemes))
    potq.quantize(model, potq.PoTConfig("pot4", targets=dict(zip(names, schemes, strict=True)), embedding="int8"))
    return IntegerModel.from_packed(model)


def in_order(model: IntegerModel) -> list[IntegerMatrix]:
    """The matrices of all blocks, as ``cycles.c`` goes through them."""
    found = []
    for block in model.blocks:
        attention, mlp = block.attention, block.mlp
        parts = (attention.query, attention.key, attention.value, attention.output, mlp.gate, mlp.up, mlp.down)
        found += [part.matrix for part in parts if part is not None]
    return found


def checksum(matrix: IntegerMatrix) -> int:
    """Of the results for the inputs of ``cycles.c``."""
    state, inputs = 1, []
    for _ in range(SIDE):
        state = (state * 1664525 + 1013904223) % 2**32
        inputs.append((state >> 14) - (1 << 17))
    return checksum_of(matrix.product(np.array(inputs, np.int64)))


def checksum_of(results: Integers) -> int:
    total = 0
    for result in results.tolist():
        total = (total * 31 + result) % 2**32
    return total


def written(program: Program, work: Path) -> Path:
    folder = work / "program"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in program.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def kernels_of(core: str, board: Board, work: Path) -> Iterator[Row]:
    """A row a case, and one of floats."""
    model = matrices()
    ordered = in_order(model)
    forms: dict[int, Form] = {id(matrix): FORMS[kernel] for matrix, (_, kernel) in zip(ordered, CASES, strict=False)}
    program = build_program(
        model, NO_TEXT, ends=[], core=board.core, forms=lambda matrix: forms.get(id(matrix)) if matrix.bits else None
    )
    elf = build(written(program, work), board, work, main=Path(__file__).with_name("cycles.c"))
    lines = run(elf, board).splitlines()
    unit = "instructions" if core in COUNTS_INSTRUCTIONS else "cycles"
    for (scheme, kernel), matrix, line in zip(CASES, ordered, lines, strict=False):
        made, summed, found = (int(word, 16) for word in line.split())
        if found != checksum(matrix):
            raise SystemExit(f"{core}: {scheme} by {kernel} does not give what the integer model gives")
        row = {"core": core, "shape": SHAPE, "scheme": scheme, "kernel": kernel, "unit": unit}
        yield row | {"per_weight": round((made + summed) / SIDE**2, 2), "of_table": round(made / SIDE**2, 2)}
    row = {"core": core, "shape": f"a product of {SIDE}", "scheme": "float32", "kernel": "library", "unit": unit}
    yield row | {"per_weight": round(int(lines[-1], 16) / SIDE, 2)}


def token(core: str, kernel: str, source: str, work: Path) -> Row:
    """A row of the whole model's first token."""
    scheme, forced = TOKENS[kernel]
    board = CORES_BY_NAME[core]
    packed = potq.load(source, potq.PoTConfig(scheme, embedding="int8"))
    model = IntegerModel.from_packed(packed, context=8)
    form = FORMS[forced] if forced else None
    chosen = board.core if forced else LIKE.get(core, board.core)
    program = build_program(model, NO_TEXT, ends=[], core=chosen, forms=lambda matrix: form)
    elf = build(written(program, work), board, work, main=Path(__file__).with_name("token.c"))
    cycles, found = (int(word, 16) for word in run(elf, board).split())
    if found != checksum_of(model.logits([1])[0]):
        raise SystemExit(f"{core}: a token by {kernel} does not give what the integer model gives")
    return {"core": core, "shape": TOKEN, "scheme": scheme, "kernel": kernel, "cycles": cycles}


def _cases(rows: Sequence[Row]) -> Iterator[tuple[str, str | None]]:
    """What is not measured yet: a core and its token's kernels, or None for its kernels."""
    done = {(row["core"], row["kernel"] if row["shape"] == TOKEN else None) for row in rows}
    cases: list[tuple[str, str | None]] = [(core, None) for core in CORES_BY_NAME]
    cases += [(core, kernel) for core, kernels in TOKENS_OF.items() for kernel in kernels]
    return (case for case in cases if case not in done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keeps programs and simulators")
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder with tinystories-656k")
    parser.add_argument("--only", action="append", choices=CORES_BY_NAME, help="a core; may be repeated")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    rows = CORES.load(PROTOCOL)
    with tempfile.TemporaryDirectory() as temporary:
        for core, kernel in list(_cases(rows)):
            if options.only and core not in options.only:
                continue
            folder = (options.work or Path(temporary)) / core.replace(" ", "-").replace(",", "")
            if kernel is None:
                rows += kernels_of(core, CORES_BY_NAME[core], folder)
            else:
                rows.append(token(core, kernel, str(options.data / "tinystories-656k"), folder))
                print(rows[-1], flush=True)
            print(core, "measured", flush=True)
            rows.sort(key=lambda row: list(CORES_BY_NAME).index(row["core"]))
            CORES.write(PROTOCOL, rows)
    print_goals(CORES.judge(rows))


if __name__ == "__main__":
    main()
