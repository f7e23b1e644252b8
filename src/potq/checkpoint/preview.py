"""What quantizing a model would do, from its config alone: no weight is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potq.checkpoint.loading import class_at, loading_errors
from potq.checkpoint.source import Source, resolve
from potq.config import PoTConfig
from potq.nn.install import install
from potq.nn.language import language_plan
from potq.nn.record import describe
from potq.nn.remarks import remarks
from potq.nn.report import ModuleReport, PlannedReport
from potq.numerics.tensor import QuantizedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def preview(source: str | os.PathLike[str], config: PoTConfig, *, model_class: str | None = None) -> PlannedReport:
    """What :func:`potq.quantize` would do to the model at ``source``, and the sizes before and after.

    Args:
        model_class: as :func:`potq.load` has it.

    Raises:
        CheckpointError: a config that is missing or damaged.
        ConfigError: a pattern that matches no module, an unknown class.
        ModelError: a class that transformers lacks; a model with code of its own; nothing to quantize.
    """
    model = _empty(resolve(source), class_at(source, model_class))
    _, todo = language_plan(model, config)
    odd = remarks(todo.targets, model.dtype)
    for target in todo.targets:
        install(model, target, QuantizedWeight.empty(target.shape, target.scheme, "meta"))
    found = describe(model)
    kinds = {target.name: target.kind for target in todo.targets}
    modules = [_planned(module, kinds[module.name]) for module in found.modules]
    return PlannedReport(
        modules=modules, skipped=todo.skipped, bytes_after=found.bytes_after, weights=found.weights, remarks=odd
    )


def _empty(where: Source, kind: Any) -> PreTrainedModel:
    """The model, without weights: on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    from potq.checkpoint.gguf.loading import gguf_config

    with loading_errors(where), torch.device("meta"):
        model: PreTrainedModel
        if kind is None:
            model = AutoModelForCausalLM.from_config(gguf_config(Path(where.path)))
        else:
            model = kind._from_config(kind.config_class.from_pretrained(where.name))
    model.tie_weights()
    return model


def _planned(module: ModuleReport, kind: str) -> ModuleReport:
    return module.model_copy(update={"kind": kind, "algorithm": "not quantized yet"})
