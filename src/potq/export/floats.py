"""Weights that a format stores as floats."""

from __future__ import annotations

import torch
from torch import Tensor

from potq.errors import ExportError


def exact_floats(values: Tensor, name: str) -> Tensor:
    """``values`` in the first of float16, bfloat16 and float32 that holds them all.

    Raises:
        ExportError: float64 values that float32 does not hold, or NaN.
    """
    if values.isnan().any():
        raise ExportError(f"{name} has NaN values; repair the model")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        stored = values.to(dtype)
        if torch.equal(stored.to(values.dtype), values):
            return stored
    raise ExportError(f"{name} has values that float32 does not hold exactly")
