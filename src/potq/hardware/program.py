"""An integer model as a C program: its files, and the memory that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources

import numpy as np

from potq.errors import ExportError
from potq.hardware.arrays import Arrays
from potq.hardware.kernel_source import KernelSource
from potq.hardware.kernels import MULTIPLIES, TOGETHER, Core, Form, Saving, choose, code_bytes, stored
from potq.hardware.layers import IntegerAttention, IntegerNorm
from potq.hardware.matrix import IntegerLinear, IntegerMatrix
from potq.hardware.model import IntegerModel
from potq.hardware.tables import POWERS
from potq.hardware.vocabulary import NONE, Vocabulary

Forms = Callable[[IntegerMatrix], Form | None]
STACK = 1 << 10
"""Bytes of stack, at most."""
_CODE = 12 << 10, 8 << 10
"""Bytes of instructions without kernels, at most: of RISC-V (and any other core), and of Cortex-M."""
_LAST = 2**32 - 1  # ends a list
_POINTERS = 52  # bytes of a matrix's description on a 32-bit core
_NORM = 12


@dataclass(frozen=True)
class Memory:
    """Bytes of a program.

    Attributes:
        flash: constants and instructions.
        code: the instructions of these, at most.
        ram: static variables.
        stack: the deepest call.
    """

    flash: int
    code: int
    ram: int
    stack: int


@dataclass(frozen=True)
class Program:
    """A C program.

    Attributes:
        files: text by name.
        memory: what it takes.
        kernels: how many matrices each form computes.
    """

    files: dict[str, str]
    memory: Memory
    kernels: dict[str, int]


def build_program(
    model: IntegerModel,
    vocabulary: Vocabulary,
    *,
    ends: list[int],
    core: Core = "generic",
    strict: bool = False,
    flash: int | None = None,
    ram: int | None = None,
    forms: Forms | None = None,
) -> Program:
    """The C program of ``model``.

    Args:
        vocabulary: of its tokenizer.
        ends: tokens that end a text.
        core: whose cheapest kernels are taken.
        strict: no multiplication in products with packed weights, of their scales either.
        flash: bytes of constants and instructions that there are.
        ram: bytes of static variables and stack that there are. Slower kernels are taken where the fastest need more memory.
        forms: chooses another kernel for a matrix, if it returns one; for measurements.

    Raises:
        ExportError: a matrix that no kernel takes, or memory that is not enough, with both numbers.
    """
    strict = strict or not MULTIPLIES[core]
    for saving in Saving:  # from the fastest kernels to the smallest
        program = _Builder(model, vocabulary, ends, core, strict, saving, forms).build()
        memory = program.memory
        if (flash is None or memory.flash <= flash) and (ram is None or memory.ram + memory.stack <= ram):
            return program
    if flash is not None and memory.flash > flash:
        raise ExportError(
            f"the program takes {memory.flash:,} bytes of flash, and there are {flash:,}; quantize to fewer bits, or take a "
            "smaller model"
        )
    raise ExportError(
        f"the program takes {memory.ram:,} bytes of RAM and {memory.stack:,} of stack, and there are {ram:,}; pass a "
        f"shorter context than {model.context}"
    )


@dataclass
class _Builder:
    model: IntegerModel
    vocabulary: Vocabulary
    ends: list[int]
    core: Core
    strict: bool
    saving: Saving
    forced: Forms | None
    arrays: Arrays = field(default_factory=lambda: Arrays("weights.h"))
    source: KernelSource = field(default_factory=KernelSource)
    forms: dict[str, int] = field(default_factory=dict)
    entries: int = 1  # of the table of inputs
    structures: int = 0  # bytes
    code: int = 0  # bytes of kernels
    emitted: dict[int, str] = field(default_factory=dict)  # descriptions by matrix

    def build(self) -> Program:
        self._write_tables()
        self._write_vocabulary()
        self._write_blocks()
        files = {name: _template(name) for name in _TEMPLATES}
        files |= {"weights.c": self.arrays.text, "kernels.c": self.source.text, "config.h": self._config()}
        code = self.code + _CODE[self.core.startswith("cortex")]
        memory = Memory(self.arrays.nbytes + self.structures + code, code, self._ram(), STACK)
        return Program(files, memory, self.forms)

    def _write_tables(self) -> None:
        self.arrays.add("potq_powers", "uint16_t", POWERS, local=False)
        self.arrays.add("potq_gates", "uint16_t", self.model.blocks[0].mlp.table, local=False)
        if self.model.rotation is not None:
            for name, table in zip(("potq_cosines", "potq_sines"), self.model.rotation, strict=True):
                self.arrays.add(name, "int16_t", table, local=False)

    def _write_vocabulary(self) -> None:
        words, arrays = self.vocabulary, self.arrays
        blob = b"".join(words.pieces) + b"\0"
        arrays.add_text("potq_pieces", "char", [str(byte - 256 * (byte > 127)) for byte in blob], local=False)
        arrays.add("potq_piece_starts", "uint32_t", np.cumsum([0, *map(len, words.pieces)]), local=False)
        symbols = sorted(words.symbols.items())
        arrays.add("potq_symbols", "uint32_t", [character for character, _ in symbols] + [_LAST], local=False)
        arrays.add("potq_symbol_tokens", "uint16_t", [token for _, token in symbols] + [NONE], local=False)
        merges = [
            f"{{{left << 16 | right}u, {rank}, {token}}}" for (left, right), (rank, token) in sorted(words.merges.items())
        ]
        arrays.add_text("potq_merges", "potq_merge", [*merges, f"{{{_LAST}u, {NONE}, {NONE}}}"], local=False)
        arrays.add("potq_byte_tokens", "uint16_t", words.byte_tokens, local=False)
        arrays.add("potq_prefix", "uint16_t", [*words.prefix, NONE], local=False)
        arrays.add("potq_ends", "uint16_t", [*self.ends, NONE], local=False)

    def _write_blocks(self) -> None:
        model = self.model
        self._public("potq_embedding", IntegerLinear(model.embedding))
        self._public("potq_head", model.head)
        if model.positions is not None:
            self._public("potq_positions", IntegerLinear(model.positions))
        blocks = []
        for index, block in enumerate(model.blocks):
            attention, mlp = block.attention, block.mlp
            parts = [attention.query, attention.key, attention.value, attention.output]
            gate = [] if mlp.gate is None else [mlp.gate]
            fields = [self._norm(f"norm_{index}_0", block.before_attention), *map(self._matrix, parts)]
            fields += [self._norm(f"norm_{index}_1", block.before_mlp), *map(self._matrix, [*gate, mlp.up, mlp.down])]
            blocks.append("{" + ",\n ".join(fields) + "}")
        self.arrays.write("const potq_block potq_blocks[POTQ_LAYERS] = {\n" + ",\n".join(blocks) + "};")
        self.arrays.write(f"const potq_norm potq_last_norm = {self._norm('last_norm', model.norm)};")

    def _public(self, name: str, linear: IntegerLinear) -> None:
        self.arrays.write(f"const potq_matrix {name} = {self._matrix(linear)};")

    def _norm(self, name: str, norm: IntegerNorm) -> str:
        gains = self.arrays.add(f"{name}_gains", "int16_t", norm.gains)
        bias = "NULL" if norm.bias is None else self.arrays.add(f"{name}_bias", "int32_t", norm.bias)
        self.structures += _NORM
        return f"{{{gains}, {bias}, {norm.fraction}}}"

    def _matrix(self, linear: IntegerLinear) -> str:
        """The description of a matrix, whose arrays are written once."""
        matrix = linear.matrix
        if id(matrix) not in self.emitted:
            self.emitted[id(matrix)] = self._describe(len(self.emitted), linear)
        self.structures += _POINTERS
        return self.emitted[id(matrix)]

    def _describe(self, number: int, linear: IntegerLinear) -> str:
        matrix = linear.matrix
        form = self.forced(matrix) if self.forced is not None else None
        form = form or choose(matrix, self.core, strict=self.strict, saving=self.saving)
        if form.entries is not None:
            self.entries = max(self.entries, form.entries(matrix.bits) * matrix.shape[1])
        self.forms[form.name] = self.forms.get(form.name, 0) + 1
        codes, levels = stored(matrix, form)
        kind = "uint32_t" if codes.dtype == np.uint32 else "uint8_t"
        bias = "NULL" if linear.bias is None else self.arrays.add(f"bias_{number}", "int32_t", linear.bias)
        fields = [
            f"&{self._kernel(form, matrix)}",
            self.arrays.add(f"codes_{number}", kind, codes),
            self.arrays.add(f"levels_{number}", "int16_t", levels) if levels else "NULL",
            *self._scales(number, matrix),
            bias,
            *map(str, (*matrix.shape, matrix.group, matrix.shifts.shape[1], *self._strides(matrix, form))),
            *map(str, (matrix.exponent, matrix.dropped, _unit(matrix), matrix.bits, form.layout_of(matrix.bits))),
        ]
        return "{" + ", ".join(fields) + "}"

    def _strides(self, matrix: IntegerMatrix, form: Form) -> tuple[int, int]:
        """Bytes of the codes of a group and of a row."""
        width = form.width(matrix.bits)
        return min(matrix.group, matrix.shape[1]) * width // 8, matrix.shape[1] * width // 8

    def _kernel(self, form: Form, matrix: IntegerMatrix) -> str:
        known = len(self.source.names)
        name = self.source.use(form, matrix)
        if len(self.source.names) > known:
            self.arrays.write(f"extern const potq_kernel {name};")
            self.structures += form.constants
            self.code += code_bytes(form, self.core)
        return name

    def _scales(self, number: int, matrix: IntegerMatrix) -> tuple[str, str]:
        if matrix.is_shift:
            return self.arrays.add(f"scales_{number}", "uint8_t", matrix.shifts), "NULL"
        packed = np.where(matrix.mantissas < 0, 1 << 15, 0) | matrix.shifts << 10 | (np.abs(matrix.mantissas) - 1024)
        return "NULL", self.arrays.add(f"scales_{number}", "uint16_t", packed)

    def _sizes(self) -> dict[str, int]:
        model, attention = self.model, self.model.blocks[0].attention
        matrices = self._matrices()
        return {
            "HIDDEN": model.embedding.shape[1],
            "INTERMEDIATE": model.blocks[0].mlp.up.matrix.shape[0],
            "LAYERS": len(model.blocks),
            "HEADS": attention.heads,
            "KV_HEADS": attention.kv_heads,
            "HEAD_DIM": attention.head_dim,
            "VOCABULARY": model.vocabulary,
            "CONTEXT": model.context,
            "MOST_COLUMNS": max(matrix.shape[1] for matrix in matrices),
            "MOST_GROUPS": max(-(-matrix.shape[1] // matrix.group) for matrix in matrices),
            "TABLE_ENTRIES": self.entries,
        }

    def _matrices(self) -> list[IntegerMatrix]:
        model = self.model
        found = [model.head.matrix]
        for block in model.blocks:
            attention, mlp = block.attention, block.mlp
            parts = (attention.query, attention.key, attention.value, attention.output, mlp.gate, mlp.up, mlp.down)
            found += [part.matrix for part in parts if part is not None]
        return found

    def _config(self) -> str:
        model, attention, words = self.model, self.model.blocks[0].attention, self.vocabulary
        settings = self._sizes() | {
            "MULTIPLIES": int(not self.strict),
            "TOGETHER": TOGETHER[self.core],
            "GATED": int(model.blocks[0].mlp.gate is not None),
            "CENTERED": int(model.norm.centered),
            "ROTARY": int(model.rotation is not None),
            "SQUARE_SHIFT": model.norm.square_shift,
            "EPSILON": model.norm.epsilon,
            "FACTOR": attention.factor[0],
            "FACTOR_EXPONENT": attention.factor[1],
            "WEIGHT_SHIFT": attention.weight_shift,
            "BYTE_LEVEL": int(words.byte_level),
            "PREPENDS_SPACE": words.prepends_space,
            "PIECES": len(words.pieces),
            "SYMBOLS": len(words.symbols),
            "MERGES": len(words.merges),
            "UNKNOWN": words.unknown,
            "FUSES_UNKNOWN": int(words.fuses_unknown),
        }
        lines = [f"#define POTQ_{name} {value if value >= 0 else f'({value})'}" for name, value in settings.items()]
        return "\n".join(
            ["/* Written by potq export. */", "#ifndef POTQ_CONFIG_H", "#define POTQ_CONFIG_H", *lines, "#endif\n"]
        )

    def _ram(self) -> int:
        """Bytes of the static variables of c/*.c."""
        size = self._sizes()
        attention: IntegerAttention = self.model.blocks[0].attention
        width, kv_width = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        gated = 1 + (self.model.blocks[0].mlp.gate is not None)
        cache = 2 * size["LAYERS"] * size["CONTEXT"] * (kv_width + attention.kv_heads)
        vectors = 4 * (4 * size["HIDDEN"] + 2 * width + 2 * kv_width + gated * size["INTERMEDIATE"])
        texts = 4 * size["VOCABULARY"] + (4 + 2 + 8) * size["CONTEXT"]  # logits; scores, prompt, symbols of a word
        return cache + vectors + texts + size["MOST_COLUMNS"] * 9 // 8 + size["MOST_GROUPS"] + 2 * size["TABLE_ENTRIES"] + 16


def _unit(matrix: IntegerMatrix) -> int:
    return int(matrix.mantissas.flat[0]).bit_length() - 1 if matrix.is_shift else 0


_TEMPLATES = (
    "arithmetic.h", "kernels.h", "layers.c", "layers.h", "main.c", "matrix.c", "matrix.h", "model.c", "model.h", "planes.c",
    "table_kernels.h", "tokenizer.c", "weights.h",
)  # fmt: skip


def _template(name: str) -> str:
    return resources.files("potq.hardware").joinpath("c", name).read_text(encoding="utf-8")
