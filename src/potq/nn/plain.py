"""Plain modules: any ``torch.nn.Module`` that is not one of transformers' models. They have no config of transformers', so
what was done to them is kept as an attribute.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from potq.config import PoTConfig
from potq.errors import ModelError

_CONFIG = "_potq_config"


def is_plain(model: nn.Module) -> bool:
    """Whether ``model`` is no model of transformers'; it may have one in it."""
    return not any(
        base.__name__ == "PreTrainedModel" and base.__module__.startswith("transformers.") for base in type(model).__mro__
    )


def packed_config(model: nn.Module | None) -> PoTConfig | None:
    """The config that ``model`` was quantized with, whichever kind it is; None: it was not."""
    found: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    found = getattr(model, _CONFIG, found)
    return found if isinstance(found, PoTConfig) else None


def note_config(model: nn.Module, config: PoTConfig) -> None:
    """Have a plain module say what it was quantized with."""
    model.__dict__[_CONFIG] = config


def forget_config(model: nn.Module) -> None:
    """The inverse of :func:`note_config`."""
    model.__dict__.pop(_CONFIG, None)


def require_replaceable(model: nn.Module) -> None:
    """Refuse a plain module in which nothing can take a weight's place.

    Raises:
        ModelError: it is itself the layer to be replaced, or is compiled by TorchScript.
    """
    if isinstance(model, (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d)):
        raise ModelError(
            f"the module is a {type(model).__name__} itself; quantize what it belongs to, or nn.Sequential(module)"
        )
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.jit"):
            raise ModelError(f"{name or 'the module'} is TorchScript, which cannot be changed; quantize what it was made of")
