"""Kernels run under Triton's interpreter where there is no GPU; its bfloat16 arithmetic is mended here."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter (3.7.1) truncates float32 to bfloat16, where a GPU rounds, flushes the subnormal numbers of the way
    back, and multiplies matrices of bfloat16 by their bits."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def converted(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(data.copy()).bfloat16().view(torch.int16).numpy().view("uint16")
        if (source, target) == (tl.bfloat16, tl.float32):
            return (data.view("uint16").astype("uint32") << 16).view("float32")
        return convert(data, source, target, mode)

    def widened(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        parts = [builder.cast_impl(part, tl.float32) if part.dtype == tl.bfloat16 else part for part in (a, b)]
        return dot(builder, *parts, *rest)

    monkeypatch.setattr(interpreter, "_convert_float", converted)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widened)
