"""What quantizing a model would do, from its config alone: no weight is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potq.checkpoint.loading import loading_errors
from potq.checkpoint.source import Source, resolve
from potq.config import PoTConfig
from potq.nn.language import language_plan
from potq.nn.plan import install
from potq.nn.report import ModuleReport, PlannedReport
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.quantize import describe

if TYPE_CHECKING:
    from torch import nn


def hub_config(source: str | os.PathLike[str]) -> Any:
    """The config of a model as transformers reads it.

    Raises:
        CheckpointError: it is missing or damaged.
        ModelError: a kind of model that transformers does not know.
    """
    from transformers import AutoConfig

    from potq.checkpoint.gguf.loading import gguf_config

    where = resolve(source)
    with loading_errors(where):
        return gguf_config(Path(where.path)) if where.gguf_file else AutoConfig.from_pretrained(where.name)


def preview(source: str | os.PathLike[str], config: PoTConfig) -> PlannedReport:
    """What :func:`potq.quantize` would do to the model at ``source``, and the sizes before and after.

    Raises:
        CheckpointError: a config that is missing or damaged.
        ConfigError: a pattern that matches no module.
        ModelError: not a causal LM; nothing to quantize.
    """
    where = resolve(source)
    model = _empty(where, hub_config(source))
    _, todo = language_plan(model, config)
    for target in todo.targets:
        install(model, target, QuantizedWeight.empty(target.shape, target.scheme, "meta"))
    found = describe(model)
    kinds = {target.name: target.kind for target in todo.targets}
    modules = [_planned(module, kinds[module.name]) for module in found.modules]
    return PlannedReport(modules=modules, skipped=todo.skipped, bytes_after=found.bytes_after, weights=found.weights)


def _empty(where: Source, config: Any) -> nn.Module:
    """The model, without weights: on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    with loading_errors(where), torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # type: ignore[operator]  # transformers'
    return model


def _planned(module: ModuleReport, kind: str) -> ModuleReport:
    return module.model_copy(update={"kind": kind, "algorithm": "not quantized yet"})
