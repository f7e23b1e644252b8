"""Writing a folder with a model as a C program."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from potq.errors import ExportError
from potq.export.output import check_on_cpu, folder_bytes
from potq.files import check_destination, disk_errors, flush, replacing
from potq.hardware.kernels import Core
from potq.hardware.model import IntegerModel
from potq.hardware.program import Program, build_program
from potq.hardware.vocabulary import Vocabulary
from potq.nn.packed_model import packed_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARK = "model.h"
"""The file that tells such a folder from others."""


class CReport(BaseModel):
    """What a C program takes, in bytes, and how many matrices each kernel computes."""

    model_config = ConfigDict(extra="forbid")

    path: str
    core: Core
    strict: bool
    context: int
    flash: int
    ram: int
    stack: int
    kernels: dict[str, int]
    nbytes: int = 0

    def summary(self) -> str:
        """One line: memory and kernels."""
        kernels = ", ".join(f"{name} {count}" for name, count in self.kernels.items())
        memory = f"flash {self.flash:,} bytes, RAM {self.ram:,}, stack {self.stack:,}"
        return f"{memory}; context {self.context} tokens; kernels for {self.core}: {kernels}"


class CExport:
    """A C program that is built and not yet written, so that what it takes is known before.

    Args:
        model: quantized by potq, a Llama, Mistral, Qwen2 or GPT-2 whose embedding and head are packed too.
        tokenizer: the model's: SentencePiece's or GPT-2's byte-pair encoding.
        core: whose cheapest kernels are taken.
        strict: no multiplication in products with packed weights.
        context: the longest text in tokens; the model's by default.
        flash: bytes of constants and instructions that there are.
        ram: bytes of static variables and stack that there are.

    Raises:
        ExportError: no packed weight; a scheme, group size or tokenizer that the program does not take; memory that is not
            enough.
        ModelError: a family without integer form, or a matrix that is not packed.
        DataError: a context beyond the model's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        core: Core = "generic",
        strict: bool = False,
        context: int | None = None,
        flash: int | None = None,
        ram: int | None = None,
    ) -> None:
        check_on_cpu(model)
        if not packed_modules(model):
            raise ExportError("the model is not quantized by potq; quantize it first")
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        integers = IntegerModel.from_packed(model, context=context)
        self._program: Program = build_program(
            integers, vocabulary, ends=_ends(model), core=core, strict=strict, flash=flash, ram=ram
        )
        memory = self._program.memory
        self.report = CReport(
            path="", core=core, strict=strict, context=integers.context, flash=memory.flash, ram=memory.ram,
            stack=memory.stack, kernels=self._program.kernels,
        )  # fmt: skip

    def write(self, path: str | os.PathLike[str], *, force: bool = False) -> CReport:
        """Write the folder, whole or not at all.

        Args:
            force: replace a folder with such a program.

        Raises:
            CheckpointError: something is in the way at ``path``, or the disk is full.
        """
        target = check_destination(path, force=force, mark=MARK)
        files = {name: text.encode() for name, text in self._program.files.items()}
        with disk_errors(target, sum(map(len, files.values()))), replacing(target) as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)
            flush(folder)
            nbytes = folder_bytes(folder)
        return self.report.model_copy(update={"path": str(target), "nbytes": nbytes})


def _ends(model: Any) -> list[int]:
    """Tokens that end a text, as generation knows them."""
    found = getattr(model.generation_config, "eos_token_id", None)
    found = model.config.eos_token_id if found is None else found
    return [] if found is None else [found] if isinstance(found, int) else list(found)
