"""Machine instructions per weight of every way to dequantize: ``python -m benchmarks.gpu.instructions`` (no GPU needed).

Triton compiles each kernel for the capability asked for, its ``nvdisasm`` prints the machine code (both come with the
package ``triton``), and instructions are counted: each thread runs all of them once, there are no loops. ``none`` is a
kernel with the same loads and stores that decodes nothing. What a form has more is its decoding; addresses, loads and stores
are in the totals only. Padding (NOP) and the idle jump behind EXIT are not counted.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import triton

from benchmarks.common.goals import Row, print_goals
from benchmarks.gpu import forms as gpu_forms
from benchmarks.gpu.goals import INSTRUCTIONS, POT, UNIFORM
from potq.kernels.triton import dequantize
from potq.kernels.triton.launch import Launch
from potq.kernels.triton.weight import GpuWeight
from potq.kernels.weight import PackedWeight
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight

CAPABILITIES = (80, 90, 100)
ROWS, COLUMNS = 64, 4096
DTYPES = (torch.float16, torch.bfloat16)
CATEGORIES = {
    "memory": ("LDG", "STG", "LDS", "STS", "LDSM", "LDC", "ULDC", "LDCU", "BAR", "S2R", "S2UR", "CS2R", "SHFL"),
    "float": ("HFMA2", "HMUL2", "HADD2", "FMUL", "FADD", "FFMA", "I2F", "I2FP", "F2F", "F2FP", "MUFU", "FMUL2", "HSETP2"),
    "control": ("EXIT", "BRA", "ISETP", "PLOP3", "UISETP", "BSSY", "BSYNC"),
}
PROTOCOL = {
    "matrix": f"{ROWS}x{COLUMNS}, groups of 64, float16 scales",
    "weights of a thread": 8 * dequantize.BLOCKS.parts,
    "instructions": "of the whole kernel; decoding: those of the form less those of 'none' with the same codes",
    "categories": {**{name: list(ops) for name, ops in CATEGORIES.items()}, "integer": "the rest"},
}
Contestant = tuple[str, str, int, Launch]  # grid, form, bits


def weight_of(name: str) -> QuantizedWeight:
    """Of any codes; only their places matter."""
    weight = QuantizedWeight.empty((ROWS, COLUMNS), QuantScheme(name, group_size=64), "cpu")
    weight.packed.zero_()
    weight.scale.fill_(1)
    return weight


def contestants(dtype: torch.dtype) -> Iterator[Contestant]:
    """Every form of every grid."""
    out = torch.empty(ROWS, COLUMNS, dtype=dtype)
    for names, forms in ((POT, ("none", "add")), (UNIFORM, ("none", "magic", "fused"))):
        for bits, name in names.items():
            weight = weight_of(name)
            arranged = GpuWeight.of(PackedWeight.of(weight))
            yield name, "potq", bits, dequantize.launch(arranged, out)
            for form in forms:
                yield name, form, bits, gpu_forms.launch(form, weight, out)
    for name, bits in (("apot3", 3), ("apot4", 4)):
        weight = weight_of(name)
        arranged = GpuWeight.of(PackedWeight.of(weight))
        yield name, "potq", bits, dequantize.launch(arranged, out)


def opcodes(machine_code: bytes) -> list[str]:
    """Mnemonics, without what follows the first point, of a cubin's only kernel."""
    tool = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        text = subprocess.run([str(tool), "-c", file.name], capture_output=True, text=True, check=True).stdout
    return parse(text)


def parse(disassembly: str) -> list[str]:
    """Mnemonics in ``nvdisasm``'s text: all but NOP, and the jump to itself at the end."""
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", disassembly)
    kept = [name for name in found if name != "NOP"]
    return kept[:-1] if kept and kept[-1] == "BRA" else kept


def counted(names: list[str]) -> dict[str, int]:
    """Instructions of each category."""
    category = {op: name for name, ops in CATEGORIES.items() for op in ops}
    counts = Counter(category.get(name, "integer") for name in names)
    return {name: counts[name] for name in (*CATEGORIES, "integer")}


def measure() -> Iterator[Row]:
    weights = 8 * dequantize.BLOCKS.parts
    for capability in CAPABILITIES:
        for dtype in DTYPES:
            for grid, form, bits, launch in contestants(dtype):
                counts = counted(opcodes(launch.compile(capability).asm["cubin"]))
                row = {"capability": capability, "dtype": str(dtype).removeprefix("torch."), "bits": bits, "grid": grid}
                print(row | {"form": form}, sum(counts.values()) / weights, flush=True)
                yield row | {"form": form, **counts, "per_weight": sum(counts.values()) / weights}


def with_decoding(rows: list[Row]) -> list[Row]:
    """Each row with ``decoding_per_weight``; tables are compared with the PoT grid of as many bits."""
    empty = {_case(row): row["per_weight"] for row in rows if row["form"] == "none"}
    family = {**{name: name for name in (*POT.values(), *UNIFORM.values())}, "apot3": "pot3", "apot4": "pot4"}
    return [row | {"decoding_per_weight": row["per_weight"] - empty[_case(row, family[row["grid"]])]} for row in rows]


def _case(row: Row, grid: str | None = None) -> tuple[int, str, str]:
    return row["capability"], row["dtype"], grid or row["grid"]


def main() -> None:
    if torch.cuda.is_available():
        print("counting compiled code; the GPU is not used", file=sys.stderr)
    rows = with_decoding(list(measure()))
    print_goals(INSTRUCTIONS.write(PROTOCOL, rows))


if __name__ == "__main__":
    main()
