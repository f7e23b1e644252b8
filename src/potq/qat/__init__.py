"""Quantization-aware training: by a recipe, or prepare a model, train it as ever, convert it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from potq.qat.prepare import convert, prepare, refresh_scales
from potq.qat.recipe import TrainRecipe
from potq.qat.settings import QATSettings

if TYPE_CHECKING:
    from potq.qat.run import TrainingResult, train

_RUN = ("TrainingResult", "train")  # they import transformers' Trainer, which takes seconds

__all__ = ["QATSettings", "TrainRecipe", "TrainingResult", "convert", "prepare", "refresh_scales", "train"]


def __getattr__(name: str) -> Any:
    if name not in _RUN:
        raise AttributeError(f"module 'potq.qat' has no attribute {name!r}")
    return getattr(importlib.import_module("potq.qat.run"), name)
