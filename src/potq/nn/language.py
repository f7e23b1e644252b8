"""What of a model is quantized unless more is asked for: of a multimodal one the language model, of experts not the routers.

Towers for images and sound, and what projects their outputs, stay as they are: calibration by text never reaches them. Nor
are linears rounded that choose experts: they are small, and a choice that is another changes everything behind it.

Nothing here knows an architecture: the language model is what has the config's text part, the input embedding and the head.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from potq.config import PoTConfig, matches
from potq.nn.experts import routers
from potq.nn.plan import Plan, plan
from potq.nn.properties import embeddings
from potq.nn.weights import quantizable_weights

_OUTSIDE = "outside the language model; a pattern in targets asks for it"
_ROUTER = "it chooses experts; a pattern in targets asks for it"


def language_plan(model: nn.Module, config: PoTConfig, *, experts: bool = True) -> tuple[PoTConfig, Plan]:
    """What to quantize of ``model``, and ``config`` that says so: it ignores what is outside the language model, and
    routers, but for modules that its targets name.

    Args:
        experts: whether stacks of experts' matrices are quantized, where there are any.

    Raises:
        ConfigError, ModelError: as :func:`potq.nn.plan.plan`.
    """
    patterns = (*config.ignore, *config.targets)
    reasons = dict.fromkeys(routers(model), _ROUTER) | dict.fromkeys(_outside(model), _OUTSIDE)
    left = {name: why for name, why in reasons.items() if not any(matches(pattern, name) for pattern in patterns)}
    kept = [name for name in quantizable_weights(model) if name not in left]
    added = dict.fromkeys(_pattern(name, kept) for name in left)
    config = config.model_copy(update={"ignore": (*config.ignore, *added)})
    todo = plan(model, config.with_expert_stacks(None if experts else False))
    config = config.with_expert_stacks(any(target.experts for target in todo.targets))
    skipped = [each.model_copy(update={"reason": left.get(each.name, each.reason)}) for each in todo.skipped]
    return config, Plan(todo.targets, skipped)


def language_prefixes(model: nn.Module) -> tuple[str, ...]:
    """What names in the language model of a multimodal one begin with; empty if the model is nothing else."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text is config or embeddings(model, "input") is None:  # two towers side by side have no input embedding in common
        return ()
    return tuple(f"{name}." for name, module in model.named_modules() if type(getattr(module, "config", None)) is type(text))


def _outside(model: nn.Module) -> list[str]:
    """What is quantizable outside the language model; none if the model is nothing else."""
    inside = language_prefixes(model)
    if not inside:
        return []
    ends = (embeddings(model, "input"), embeddings(model, "output"))
    kept = {name for name, module in model.named_modules() if any(module is end for end in ends)}
    return [name for name in quantizable_weights(model) if not name.startswith(inside) and name not in kept]


def _pattern(name: str, kept: list[str]) -> str:
    """The pattern of the largest part of the model that has ``name`` in it and nothing that is ``kept``, in every layer."""
    parts = name.split(".")
    starts = (".".join(parts[:count]) + "." for count in range(1, len(parts)))
    patterns = (re.escape(start) + ".*" for start in starts)
    found = next((each for each in patterns if not any(matches(each, one) for one in kept)), re.escape(name))
    every = re.sub(r"(?<=\.)\d+(?=\\\.)", r"\\d+", found)  # of layers
    return found if any(matches(every, each) for each in kept) else every
