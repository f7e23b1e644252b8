"""What quantizing a model would do, from its config alone: no weight is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potq.checkpoint.architecture import check_architecture
from potq.checkpoint.files import read_config
from potq.checkpoint.loading import loading_errors
from potq.checkpoint.source import Source, resolve
from potq.config import PoTConfig
from potq.nn.language import language_plan
from potq.nn.plan import install
from potq.nn.remarks import remarks
from potq.nn.report import ModuleReport, PlannedReport
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.quantize import describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def preview(source: str | os.PathLike[str], config: PoTConfig) -> PlannedReport:
    """What :func:`potq.quantize` would do to the model at ``source``, and the sizes before and after.

    Raises:
        CheckpointError: a config that is missing or damaged.
        ConfigError: a pattern that matches no module.
        ModelError: not a causal LM; a model with code of its own; nothing to quantize.
    """
    where = resolve(source)
    check_architecture(where.name, read_config(where))
    model = _empty(where)
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


def _empty(where: Source) -> PreTrainedModel:
    """The model, without weights: on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    with loading_errors(where), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(_transformers_config(where), trust_remote_code=False)
    model.tie_weights()
    return model


def _transformers_config(where: Source) -> Any:
    from transformers import AutoConfig

    from potq.checkpoint.gguf.loading import gguf_config

    if where.gguf_file is not None:
        return gguf_config(Path(where.path))
    return AutoConfig.from_pretrained(where.name, trust_remote_code=False)  # with None transformers would ask


def _planned(module: ModuleReport, kind: str) -> ModuleReport:
    return module.model_copy(update={"kind": kind, "algorithm": "not quantized yet"})
