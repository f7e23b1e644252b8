"""A GGUF file made from another: its metadata as they are, each tensor as the caller stores it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_GENERATED = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")

Stored = tuple[Any, gguf.GGMLQuantizationType | None]
"""An array, and ggml's type of it where it holds that type's bytes."""


def as_floats(values: Any) -> Stored:
    return values, None


def copy(source: Path, output: Path, stored: Callable[[Any], Stored] = as_floats) -> None:
    """``stored`` gets every tensor dequantized to float32 by ``gguf``'s own functions, linears as ``(out, in)``."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(output, reader.fields["general.architecture"].contents())
    copy_metadata(reader, writer, {})
    for tensor in reader.tensors:
        values, kind = stored(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        writer.add_tensor(tensor.name, values, raw_dtype=kind)
    write(writer)


def copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, changed: Mapping[str, Any]) -> None:
    """All that ``reader`` has, ``changed`` where that has another value."""
    for field in reader.fields.values():
        if not field.name.startswith(_GENERATED):
            writer.add_key_value(field.name, changed.get(field.name, field.contents()), field.types[0], field.types[-1])


def write(writer: gguf.GGUFWriter) -> None:
    """The file, with what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
