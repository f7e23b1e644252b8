"""The engine's C interface (``csrc/engine/engine.h``) through ctypes, for tests."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from potq import native

ON_TOKEN = ctypes.CFUNCTYPE(c_int32, c_void_p, c_int32)
ENDS = {-1: "error", 0: "length", 1: "token", 2: "stopped", 3: "context"}


class Options(ctypes.Structure):
    _fields_ = [("threads", c_int32), ("context", c_int32), ("arithmetic", c_int32), ("isa", c_int32)]


class Facts(ctypes.Structure):
    _fields_ = [
        ("vocabulary", c_int32),
        ("layers", c_int32),
        ("context", c_int32),
        ("threads", c_int32),
        ("isa", c_int32),
        ("weight_bytes", c_int64),
    ]


class Sampling(ctypes.Structure):
    _fields_ = [
        ("temperature", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("top_k", c_int32),
        ("seed", c_uint64),
    ]


@cache
def library() -> ctypes.CDLL:
    lib = native.library()
    signatures = {
        "potq_engine_open": (c_void_p, [c_char_p, POINTER(Options), c_char_p, c_size_t]),
        "potq_engine_close": (None, [c_void_p]),
        "potq_engine_describe": (None, [c_void_p, POINTER(Facts)]),
        "potq_engine_append": (c_int32, [c_void_p, c_void_p, c_int32, c_void_p, c_int32, c_char_p, c_size_t]),
        "potq_engine_length": (c_int32, [c_void_p]),
        "potq_engine_truncate": (c_int32, [c_void_p, c_int32]),
        "potq_engine_generate": (
            c_int32,
            [c_void_p, c_void_p, c_int32, c_int32, POINTER(Sampling), ON_TOKEN, c_void_p, c_char_p, c_size_t],
        ),
    }
    signatures |= {
        "potq_tokenizer_open": (c_void_p, [c_char_p, c_char_p, c_size_t]),
        "potq_tokenizer_close": (None, [c_void_p]),
        "potq_tokenizer_encode": (
            c_int64,
            [c_void_p, c_char_p, c_size_t, c_int32, c_void_p, c_size_t, c_char_p, c_size_t],
        ),
        "potq_tokenizer_bytes": (c_void_p, [c_void_p, c_int32, POINTER(c_size_t)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class EngineError(Exception):
    """What the engine said."""


class Engine:
    """One open engine."""

    def __init__(
        self, folder: str | Path, *, threads: int = 2, context: int = 0, activations: str = "int8", isa: int = -1
    ) -> None:
        self._message = ctypes.create_string_buffer(2048)
        options = Options(threads, context, {"int8": 0, "float": 1}[activations], isa)
        self._engine = library().potq_engine_open(os.fsencode(folder), options, self._message, 2048)
        if not self._engine:
            raise EngineError(self._message.value.decode(errors="replace"))
        self.facts = Facts()
        library().potq_engine_describe(self._engine, byref(self.facts))

    def append(self, ids: Sequence[int], *, all: bool = True) -> Tensor:
        """Logits of the appended tokens, or of the last of them alone."""
        given = (c_int32 * len(ids))(*ids)
        logits = torch.full((len(ids) if all else 1, self.facts.vocabulary), float("nan"))
        if library().potq_engine_append(
            self._engine, given, len(ids), logits.data_ptr(), all, self._message, len(self._message)
        ):
            raise EngineError(self._message.value.decode(errors="replace"))
        return logits

    def truncate(self, length: int = 0) -> None:
        assert library().potq_engine_truncate(self._engine, length) == 0

    @property
    def length(self) -> int:
        return int(library().potq_engine_length(self._engine))

    def generate(
        self,
        ids: Sequence[int],
        most: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        on_token: Callable[[int], bool] = lambda token: False,
    ) -> tuple[list[int], str]:
        """New tokens, and why they end."""
        made: list[int] = []

        def collect(_: int, token: int) -> int:
            made.append(token)
            return int(on_token(token))

        sampling = Sampling(temperature, top_p, min_p, repetition_penalty, top_k, seed)
        given = (c_int32 * len(ids))(*ids)
        end = library().potq_engine_generate(
            self._engine, given, len(ids), most, sampling, ON_TOKEN(collect), None, self._message, len(self._message)
        )
        if end < 0:
            raise EngineError(self._message.value.decode(errors="replace"))
        return made, ENDS[end]

    def close(self) -> None:
        if self._engine:
            library().potq_engine_close(self._engine)
            self._engine = None

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self.close()


class Tokenizer:
    """The engine's own tokenizer."""

    def __init__(self, file: str | Path) -> None:
        self._message = ctypes.create_string_buffer(2048)
        self._tokenizer = library().potq_tokenizer_open(os.fsencode(file), self._message, 2048)
        if not self._tokenizer:
            raise EngineError(self._message.value.decode(errors="replace"))

    def encode(self, text: str | bytes, *, special: bool = True) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        room = len(data) + 64
        ids = (c_int32 * room)()
        count = library().potq_tokenizer_encode(
            self._tokenizer, data, len(data), special, ids, room, self._message, len(self._message)
        )
        if count < 0:
            raise EngineError(self._message.value.decode(errors="replace"))
        return list(ids[:count])

    def bytes(self, token: int) -> bytes:
        size = c_size_t()
        data = library().potq_tokenizer_bytes(self._tokenizer, token, byref(size))
        return ctypes.string_at(data, size.value) if size.value else b""

    def __del__(self) -> None:
        if getattr(self, "_tokenizer", None):
            library().potq_tokenizer_close(self._tokenizer)
