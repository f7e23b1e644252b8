"""Generated C: no warning, clean under sanitizers, equal to the integer model to the bit under every kernel."""

from __future__ import annotations

import subprocess
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import potq
from potq.errors import ExportError
from potq.hardware import IntegerModel, kernels
from potq.hardware.fixed_point import LIMIT
from potq.hardware.kernels import COSTS, FORMS, Core, Form, Saving, choose
from potq.hardware.matrix import IntegerMatrix
from potq.hardware.program import STACK, Program, build_program
from potq.hardware.vocabulary import Vocabulary

from .c_program import WARNINGS, Built, require
from .test_model import TOKENS, random_model

SCHEMES = {
    "eight bits": ("int8", "int8:group_size=32", "int8:scale_dtype=e8m0", "int8:group_size=row"),
    "four bits": ("pot4", "apot4", "int4", "mxpot", "nf4"),
    "three bits": ("pot3", "pot3s", "apot3", "int3", "pot3nz", "int3_midrise"),
    "two bits": ("pot2", "pot2z", "int2", "int2_midrise", "pot4:group_size=row"),
}


def mixed_model(schemes: tuple[str, ...], name: str = "llama") -> Any:
    """A packed model whose linears take turns with the schemes."""
    model = random_model(name, quantized=False)
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = [rf"layers\.{layer}\..*{part}" for layer in range(2) for part in parts]
    targets = dict(zip(names, cycle(schemes), strict=False))
    potq.quantize(model, potq.PoTConfig("pot4", targets=targets, embedding="int8"))
    return model


def written(folder: Path, built: Program) -> Path:
    for name, text in built.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def vocabulary(byte_tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return Vocabulary.from_tokenizer(byte_tokenizer)


class EveryForm:
    """Matrices take turns with the forms that take them, whatever those cost; ``used`` says how often each was taken."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.used = dict.fromkeys(FORMS, 0)

    def __call__(self, matrix: IntegerMatrix) -> Form:
        fitting = [form for form in FORMS.values() if form.takes(matrix) and not (self.strict and form.multiplies)]
        form = min(fitting, key=lambda form: self.used[form.name])
        self.used[form.name] += 1
        return form


@pytest.mark.parametrize(("kind", "strict"), [*((kind, False) for kind in SCHEMES), ("three bits", True)])
def test_every_kernel_gives_the_integer_models_logits(
    kind: str, strict: bool, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    model, forms = IntegerModel.from_packed(mixed_model(SCHEMES[kind]), context=16), EveryForm(strict=strict)
    built = Built(written(tmp_path, build_program(model, vocabulary, ends=[0], strict=strict, forms=forms)))
    assert built.logits(TOKENS) == model.logits(TOKENS).tolist()
    block, extremes = model.blocks[0], np.random.default_rng(3)
    matrices = [block.attention.query, block.attention.key, block.attention.value, block.attention.output]
    fitting = [form for form in FORMS.values() for linear in matrices if form.takes(linear.matrix)]
    assert all(forms.used[form.name] for form in fitting if not (strict and form.multiplies))
    for index, linear in enumerate([*matrices, block.mlp.up, block.mlp.down, model.head]):
        size = linear.matrix.shape[1]
        tried = [
            np.full(size, LIMIT),
            np.full(size, -LIMIT),
            np.zeros(size, np.int64),
            extremes.choice([-LIMIT, LIMIT], size),
        ]
        tried += [extremes.integers(-(2 << bits), 2 << bits, size) for bits in (3, 12, 28)]
        for inputs in tried:
            assert built.product(index, inputs.tolist()) == linear(inputs).tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama-biased"])
def test_other_families_give_the_integer_models_logits(name: str, tmp_path: Path, vocabulary: Vocabulary) -> None:
    model = IntegerModel.from_packed(random_model(name, "mxpot"), context=len(TOKENS))
    built = Built(written(tmp_path, build_program(model, vocabulary, ends=[0], core="rv32i")))
    answers = built.ask("f " + " ".join(map(str, [*TOKENS, 3])), "f 260")
    assert [list(map(int, answer.split())) for answer in answers[:-2]] == model.logits(TOKENS).tolist()
    assert answers[-2:] == ["none", "none"]  # no room; no such token


def test_the_program_tells_what_the_integer_model_does(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> None:
    model = IntegerModel.from_packed(random_model("llama"), context=32)
    folder = written(tmp_path, build_program(model, vocabulary, ends=[0]))
    command = [require("gcc"), *WARNINGS, "-O1", *map(str, sorted(folder.glob("*.c"))), "-o", str(folder / "tell")]
    subprocess.run(command, check=True)
    prompt = "the cat"
    told = subprocess.run([folder / "tell", prompt, "10"], capture_output=True, check=True).stdout
    tokens = list(model.generate(byte_tokenizer(prompt)["input_ids"], 10, end=[0]))
    assert told == b"".join(vocabulary.pieces[token] for token in tokens) + b"\n"


ARM, RISCV = "arm-none-eabi-", "riscv64-unknown-elf-"
TARGETS: dict[Core, tuple[str, ...]] = {
    "cortex-m0": (ARM, "-mcpu=cortex-m0", "-mthumb"),
    "cortex-m3": (ARM, "-mcpu=cortex-m3", "-mthumb"),
    "rv32i": (RISCV, "-march=rv32i", "-mabi=ilp32"),
    "rv32im": (RISCV, "-march=rv32im", "-mabi=ilp32"),
}
LIBRARY = {"memcpy", "memset", "__aeabi_ldivmod", "__aeabi_uldivmod", "__divdi3", "__udivdi3"}
SLOW = ("cortex-m0", "rv32i")
KERNELS = tuple(f"potq_{name}_" for name in FORMS)
NO_MULTIPLIER = {"__mulsi3", "__muldi3", "__divsi3", "__udivsi3", "__modsi3", "__umodsi3"}


@pytest.mark.parametrize("core", TARGETS)
@pytest.mark.parametrize("kind", ["chosen", *SCHEMES])
def test_memory_is_what_a_compiler_makes_of_it(core: Core, kind: str, tmp_path: Path, vocabulary: Vocabulary) -> None:
    prefix, *options = TARGETS[core]
    size, compiler = require(f"{prefix}size"), require(f"{prefix}gcc")
    model = IntegerModel.from_packed(mixed_model(SCHEMES[kind]) if kind in SCHEMES else random_model("llama"), context=32)
    forms = EveryForm(strict=core == "rv32i") if kind in SCHEMES else None
    built = build_program(model, vocabulary, ends=[0], core=core, forms=forms)
    folder = written(tmp_path, built)
    files = [str(file) for file in sorted(folder.glob("*.c")) if file.name != "main.c"]
    options += ["-O2", "-ffreestanding", "-fstack-usage", "-c"]
    subprocess.run([compiler, *WARNINGS, *options, *files], check=True, cwd=folder)
    objects = sorted(folder.glob("*.o"))
    lines = subprocess.run([size, *objects], capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    text, data, bss = (sum(int(line.split()[column]) for line in lines) for column in range(3))
    assert data == 0
    assert built.memory.flash - built.memory.code < text <= built.memory.flash
    assert bss <= built.memory.ram + 3 * len(objects)  # alignment
    assert bss > 0.95 * built.memory.ram
    frames = [line.split() for file in folder.glob("*.su") for line in file.read_text().splitlines()]
    sizes = {name.split(":")[-1]: int(frame) for name, frame, _ in frames}
    kernels = [frame for name, frame in sizes.items() if name.startswith(KERNELS) and not name.endswith("_combine")]
    others = sorted(frame for name, frame in sizes.items() if not name.startswith(KERNELS) or name.endswith("_combine"))
    assert max(kernels) + sum(others[-4:]) <= STACK  # no chain of calls is deeper: a kernel calls but its own `combine`
    undefined = subprocess.run([f"{prefix}nm", "-u", *objects], capture_output=True, text=True, check=True).stdout
    outside = {word for word in undefined.split() if not word.startswith(("potq_", "U", str(folder))) and ":" not in word}
    assert outside <= LIBRARY | (
        {"__aeabi_uidiv", "__aeabi_idiv", "__aeabi_lmul", *NO_MULTIPLIER} if core in SLOW else set()
    )


@pytest.mark.parametrize("kind", SCHEMES)
def test_clang_warns_of_nothing(kind: str, tmp_path: Path, vocabulary: Vocabulary) -> None:
    model, forms = IntegerModel.from_packed(mixed_model(SCHEMES[kind]), context=16), EveryForm(strict=False)
    folder = written(tmp_path, build_program(model, vocabulary, ends=[0], forms=forms))
    subprocess.run([require("clang"), *WARNINGS, "-fsyntax-only", *sorted(folder.glob("*.c"))], check=True)
    assert sum(forms.used.values()) == 15


def test_slower_kernels_where_memory_is_short(vocabulary: Vocabulary) -> None:
    model = IntegerModel.from_packed(random_model("llama", "pot3"), context=32)
    fast = build_program(model, vocabulary, ends=[0], core="rv32i")
    dense = build_program(model, vocabulary, ends=[0], core="rv32i", flash=fast.memory.flash - 1)
    small = build_program(model, vocabulary, ends=[0], core="rv32i", ram=dense.memory.ram + STACK - 1)
    assert set(fast.kernels) == {"pairs", "planes"}
    assert set(dense.kernels) == {"shift", "planes"}
    assert set(small.kernels) == {"shift", "add_bytes"}
    with pytest.raises(ExportError, match=rf"takes {small.memory.flash:,} bytes of flash, and there are 1,000"):
        build_program(model, vocabulary, ends=[0], core="rv32i", flash=1000)
    with pytest.raises(ExportError, match=r"bytes of RAM and 1,024 of stack, and there are 1,000; pass a shorter context"):
        build_program(model, vocabulary, ends=[0], core="rv32i", ram=1000)


def test_strict_programs_multiply_with_no_weight(vocabulary: Vocabulary) -> None:
    model = IntegerModel.from_packed(random_model("llama"), context=32)
    for core in COSTS:
        strict = build_program(model, vocabulary, ends=[0], core=core, strict=True)
        assert not any(FORMS[name].multiplies for name in strict.kernels)
        assert "#define POTQ_MULTIPLIES 0" in strict.files["config.h"]
    assert "#define POTQ_MULTIPLIES 1" in build_program(model, vocabulary, ends=[0]).files["config.h"]


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("pot4:group_size=16", r"q_proj has 64 columns in groups of 16; the C program takes multiples of 32 alone"),
        ("pot5", r"q_proj is pot5-g64, of 5 bits; the C program has kernels for grids of 2, 3 and 4 bits"),
    ],
)
def test_what_no_kernel_takes_is_refused(scheme: str, message: str, vocabulary: Vocabulary) -> None:
    model = IntegerModel.from_packed(random_model("llama", scheme), context=32)
    with pytest.raises(ExportError, match=message):
        build_program(model, vocabulary, ends=[0])


def test_every_core_has_a_kernel_without_tables_for_every_number_of_bits() -> None:
    for core in COSTS:
        for scheme in ("pot4", "int3", "pot2"):
            matrix = IntegerModel.from_packed(random_model("llama", scheme), context=8).blocks[0].mlp.up.matrix
            assert choose(matrix, core, strict=True, saving=Saving.RAM).entries is None
    assert kernels.MULTIPLIES["ibex"]
    assert not kernels.MULTIPLIES["serv"]
