"""The files that are timed: one model, a GGUF file, as potq folders and as llama.cpp's files.

A llama.cpp file is "pure": every matrix, embedding and head included, has the one type of its name; norms stay float32. It
is written tensor by tensor with ggml's own quantize functions, metadata and tokenizer copied from the model's GGUF file,
because llama.cpp's own quantizer has no pure MXFP4.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

import potq
from benchmarks.common.gguf_copy import as_floats, copy
from benchmarks.peers.ggml_library import ggml
from benchmarks.peers.packages import THREADS
from potq.checkpoint.source import smollm2_file

SMOLLM2 = "smollm2"


@dataclass(frozen=True)
class Ours:
    """A potq folder: preset of the linears, preset of embedding and head."""

    name: str
    scheme: str
    embedding: str

    def folder(self, work: Path, calibration: list[torch.Tensor] | None = None, *, source: str | Path = SMOLLM2) -> Path:
        """Where it is; made if it is not there yet: rounded to nearest, or ``balanced`` with ``calibration``."""
        effort = "fast" if calibration is None else "balanced"
        whose = "" if source == SMOLLM2 else f"{Path(source).stem}-"
        folder = work / f"{whose}{self.scheme}-{self.embedding}-{effort}"
        if not folder.exists():  # a folder is written whole or not at all
            model = potq.load(source)
            config = potq.PoTConfig(self.scheme, embedding=self.embedding, effort=effort)
            potq.quantize(model, config, calibration)
            potq.save(model, folder, potq.load_tokenizer(source))
        return folder


OURS = (
    Ours("apot4", "apot4", "apot4"),
    Ours("pot4", "pot4", "pot4"),
    Ours("mxfp4", "mxfp4", "mxfp4"),
    Ours("apot3", "apot3", "apot3"),
    Ours("pot3", "pot3", "pot3"),
    Ours("pot2", "pot2", "pot2"),
    Ours("apot4, 8-bit head", "apot4", "int8"),
)
FOUR_BITS = ("q4_0", "iq4_nl", "mxfp4")
GGML_TYPES = ("f16", "q8_0", *FOUR_BITS)


def unpacked_folder(work: Path) -> Path:
    """SmolLM2-135M in float32, as transformers saves it."""
    folder = work / "float32"
    if not folder.exists():
        temporary = work / f"float32.{os.getpid()}.tmp"
        potq.load(SMOLLM2, dtype="float32").save_pretrained(temporary)
        os.replace(temporary, folder)
    return folder


def gguf_file(kind: str, work: Path, source: Path | None = None) -> Path:
    """``source`` (SmolLM2-135M) with every matrix as ``kind`` (ggml's name of a type)."""
    source = source or smollm2_file()
    path = work / f"{SMOLLM2 if source == smollm2_file() else source.stem}-{kind}.gguf"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        _write_gguf(source, temporary, kind)
        os.replace(temporary, path)
    return path


def types_used(path: Path) -> dict[str, int]:
    """How many tensors of each type the file holds."""
    return dict(Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors))


def _write_gguf(source: Path, path: Path, kind: str) -> None:
    number = gguf.GGMLQuantizationType(ggml().types[kind])
    copy(
        source,
        path,
        lambda values: as_floats(values) if values.ndim == 1 else (_quantized(values, kind), number),
    )


_ROWS = 256  # that one thread quantizes at a time


def _quantized(values: Any, kind: str) -> Any:
    """``values`` (out, in) as bytes (out, bytes of a row)."""
    library, (rows, columns) = ggml(), values.shape
    number = library.types[kind]
    if kind == "f16":
        return values.astype(np.float16)
    values = np.ascontiguousarray(values)
    data = np.zeros((rows, library.ggml_row_size(number, columns)), np.uint8)
    source, target = (each.ctypes.data_as(ctypes.c_void_p) for each in (values, data))

    def quantize(first: int) -> None:
        count = min(_ROWS, rows - first)
        library.ggml_quantize_chunk(number, source, target, first * columns, count, columns, None)

    with ThreadPoolExecutor(THREADS) as pool:  # some types take a microsecond a weight
        list(pool.map(quantize, range(0, rows, _ROWS)))
    return data
