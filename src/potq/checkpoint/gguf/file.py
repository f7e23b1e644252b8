"""A GGUF file, or all parts of a split one, with a header that is parsed once.

``gguf.GGUFReader`` makes an object of every token of the vocabulary, and transformers reads a file four times: Gemma's
262,144 tokens, scores and types took 92 CPU seconds. Here long arrays are stepped over, and one reader serves every call.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from potq.checkpoint.source import gguf_parts
from potq.errors import CheckpointError

_LONG = 4096  # elements of an array that is not read: only vocabularies are longer
_patching = threading.RLock()


class _Reader(gguf.GGUFReader):
    """gguf's reader; long arrays have no elements."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            kind, count = struct.unpack_from("<IQ", self.data, orig_offs)
            if count > _LONG:
                return 12 + self._length(kind, count, orig_offs + 12), [], [], [gguf.GGUFValueType(raw_type)]
        return super()._get_field_parts(orig_offs, raw_type)

    def _length(self, kind: int, count: int, start: int) -> int:
        """Bytes of the elements of an array."""
        if kind != gguf.GGUFValueType.STRING:
            return int(count) * int(self.gguf_scalar_to_np[gguf.GGUFValueType(kind)]().itemsize)
        place, data = start, memoryview(self.data)
        for _ in range(count):
            place += 8 + int.from_bytes(data[place : place + 8], "little")
        return place - start


class GgufFile:
    """Metadata and tensors of a GGUF file, or of all parts of a split one, the first of which has the metadata.

    It is what ``gguf.GGUFReader`` is to transformers.

    Attributes:
        path: the file, or the first part.
        fields: the metadata as ``gguf`` reads it.
        tensors: of all parts.
        metadata: values by name, without those of long arrays.

    Raises:
        CheckpointError: a part that is missing, or of another file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        readers = [_Reader(part) for part in gguf_parts(path)]
        self.fields: dict[str, Any] = readers[0].fields
        self.tensors: list[Any] = [tensor for reader in readers for tensor in reader.tensors]
        total = self.metadata.get("split.tensors.count", len(self.tensors))
        if total != len(self.tensors):
            raise CheckpointError(
                f"{path}: all parts hold {len(self.tensors)} tensors, its header says {total}; copy the parts again"
            )
        self._state_defaults()

    @cached_property
    def metadata(self) -> dict[str, Any]:
        return {key: field.contents() for key, field in self.fields.items() if len(field.data)}

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor shapes as torch has them, rows first."""
        return {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in self.tensors}

    def _state_defaults(self) -> None:
        """Say what a file may leave out and transformers needs: it would count the tokens, which are not read, and leave
        the rows of Llama's queries as they are.
        """
        defaults = {"vocab_size": self.shapes.get("token_embd.weight", (None,))[0]}
        if self.architecture == "llama":
            defaults["attention.head_count_kv"] = self.metadata.get("llama.attention.head_count")
        for key, value in defaults.items():
            name = f"{self.architecture}.{key}"
            if value is not None and name not in self.fields:
                number, kind = np.array([value], np.uint32), gguf.GGUFValueType.UINT32
                self.fields[name] = gguf.gguf_reader.ReaderField(0, name, [number], [0], [kind])
                self.metadata[name] = value

    def values(self, name: str) -> Any:
        """A tensor, dequantized to a float32 array; None: the file has none of that name."""
        found = next((tensor for tensor in self.tensors if tensor.name == name), None)
        return None if found is None else gguf.dequantize(found.data, found.tensor_type)


def opened(path: Path) -> GgufFile:
    """``path``, parsed unless it was the last one that was, and is as it was then.

    Raises:
        CheckpointError: see :class:`GgufFile`.
    """
    state = path.stat()
    return _opened(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(path: Path, size: int, changed: int) -> GgufFile:
    return GgufFile(path)


@contextmanager
def parsed_once(file: GgufFile) -> Iterator[None]:
    """While this lasts, transformers gets ``file``, for whose path it makes a ``gguf.GGUFReader`` at every call.

    It gets one table of tensor names too: it makes one for each of the model's modules, which takes most of a load.
    """
    with _patching:
        reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
        gguf.GGUFReader = lambda path, *mode: file if Path(path) == file.path else reader(path, *mode)
        gguf.get_tensor_name_map = cache(names)
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = reader, names
