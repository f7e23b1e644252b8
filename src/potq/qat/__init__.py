"""Quantization-aware training: by a recipe, or prepare a model, train it as ever, convert it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potq.qat.preparation import convert, prepare, refresh_scales
    from potq.qat.recipe import TrainRecipe
    from potq.qat.run import TrainingResult, train
    from potq.qat.settings import QATSettings

_HOME = {  # the mistakes of a recipe are told before torch is loaded, and training imports transformers' Trainer
    "QATSettings": "settings",
    "TrainRecipe": "recipe",
    "TrainingResult": "run",
    "convert": "preparation",
    "prepare": "preparation",
    "refresh_scales": "preparation",
    "train": "run",
}

__all__ = ["QATSettings", "TrainRecipe", "TrainingResult", "convert", "prepare", "refresh_scales", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'potq.qat' has no attribute {name!r}")
    return getattr(importlib.import_module(f"potq.qat.{_HOME[name]}"), name)
