"""The language model of a multimodal one. Towers for images and sound, and what projects their outputs, stay as they are
unless they are asked for: calibration by text never reaches them.

Nothing here knows an architecture: the language model is what has the config's text part, the input embedding and the head.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from potq.config import PoTConfig, matches
from potq.nn.plan import Plan, embeddings, plan, quantizable_weights

_REASON = "outside the language model; a pattern in targets asks for it"


def language_plan(model: nn.Module, config: PoTConfig, *, experts: bool = True) -> tuple[PoTConfig, Plan]:
    """What to quantize of ``model``, and ``config`` that says so: it ignores what is outside the language model, but for
    modules that its targets name.

    Args:
        experts: whether stacks of experts' matrices are quantized, where there are any.

    Raises:
        ConfigError, ModelError: as :func:`potq.nn.plan.plan`.
    """
    patterns = (*config.ignore, *config.targets)
    left = [name for name in _outside(model) if not any(matches(pattern, name) for pattern in patterns)]
    kept = [name for name in quantizable_weights(model) if name not in left]
    added = dict.fromkeys(_pattern(name, kept) for name in left)
    config = config.model_copy(update={"ignore": (*config.ignore, *added)})
    todo = plan(model, config.with_expert_stacks(None if experts else False))
    config = config.with_expert_stacks(any(target.experts for target in todo.targets))
    skipped = [each.model_copy(update={"reason": _REASON}) if each.name in left else each for each in todo.skipped]
    return config, Plan(todo.targets, skipped)


def _outside(model: nn.Module) -> list[str]:
    """What is quantizable outside the language model; none if the model is nothing else."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text is config:
        return []
    inside = tuple(
        f"{name}." for name, module in model.named_modules() if type(getattr(module, "config", None)) is type(text)
    )
    if not inside:
        return []
    ends = (embeddings(model, "input"), embeddings(model, "output"))
    kept = {name for name, module in model.named_modules() if any(module is end for end in ends)}
    return [name for name in quantizable_weights(model) if not name.startswith(inside) and name not in kept]


def _pattern(name: str, kept: list[str]) -> str:
    """The pattern of the largest part of the model that has ``name`` in it and nothing that is ``kept``."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        part = ".".join(parts[:count]) + "."
        if not any(each.startswith(part) for each in kept):
            return re.escape(part) + ".*"
    return re.escape(name)
