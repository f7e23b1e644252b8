"""The tokenizer of the stand-alone program (``csrc/engine/engine.h``), which Python does without, through ctypes."""

from __future__ import annotations

import ctypes
import os
import weakref
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path

from potq import native
from potq.errors import EngineError

SIGNATURES = {
    "potq_tokenizer_open": (c_void_p, [c_char_p, c_char_p, c_size_t]),
    "potq_tokenizer_close": (None, [c_void_p]),
    "potq_tokenizer_encode": (c_int64, [c_void_p, c_char_p, c_size_t, c_int32, c_void_p, c_size_t, c_char_p, c_size_t]),
    "potq_tokenizer_bytes": (c_void_p, [c_void_p, c_int32, POINTER(c_size_t)]),
}


@cache
def library() -> ctypes.CDLL:
    opened = native.library()
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(opened, name)
        function.restype, function.argtypes = result, arguments
    return opened


class Tokenizer:
    """A ``tokenizer.json``."""

    def __init__(self, file: str | Path) -> None:
        self._message = ctypes.create_string_buffer(2048)
        self._tokenizer = library().potq_tokenizer_open(os.fsencode(file), self._message, len(self._message))
        if not self._tokenizer:
            raise EngineError(self._message.value.decode(errors="replace"))
        weakref.finalize(self, library().potq_tokenizer_close, self._tokenizer)

    def encode(self, text: str | bytes, *, special: bool = True) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        room = 6 * len(data) + 64  # a space may become six: two marks, of three bytes without tokens each
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
