"""Models without floating point, as small processors compute them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potq.hardware.model import IntegerModel

_HOME = {"IntegerModel": "model"}  # which imports torch

__all__ = ["IntegerModel"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'potq.hardware' has no attribute {name!r}")
    return getattr(importlib.import_module(f"potq.hardware.{_HOME[name]}"), name)
