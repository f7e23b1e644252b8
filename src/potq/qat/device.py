"""Where training runs: the processes that share it, and what it takes of a device's memory, as far as that is certain."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import nn

from potq.checkpoint.memory import memory_available
from potq.errors import ConfigError
from potq.nn.precision import fast_products
from potq.nn.properties import tensor_bytes, vocabulary
from potq.qat.recipe import Precision, TrainRecipe

_PARAMETER = 16  # bytes: value, gradient, Adam's two moments
_PATIENCE = timedelta(days=1)
_LOGIT = 8  # bytes: value, gradient; accelerate makes the values float32


def processes() -> PartialState:
    """The processes that train together, and this one's place among them: on GPUs with CUDA, or else on the CPU.

    The others wait while the first one has the teacher write or predict, which may take hours.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)  # later calls find the first one's state


def idle_devices() -> int:
    """GPUs that no process of this run uses, where there is but one."""
    return max(0, torch.cuda.device_count() - 1) if processes().num_processes == 1 else 0


def require_known_sharding() -> None:
    """Refuse launchers whose shards cannot be put together again.

    Raises:
        ConfigError: FSDP's first version, or DeepSpeed.
    """
    sharded = _is_on("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2"
    if sharded or _is_on("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            "training is sharded by FSDP2 only; start it with accelerate launch --use_fsdp --fsdp_version 2 (docs/qat.md)"
        )


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")


def training_device() -> torch.device:
    """Where this process trains."""
    device: torch.device = processes().device
    return device if device.type == "cuda" else torch.device("cpu")  # several processes have cpu:0


def fast_training(dtype: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Meanwhile products in ``dtype``, and those of the way back, are as fast as the CPU allows, if that is the device."""
    return fast_products([torch.bfloat16] if dtype == "bfloat16" and device.type == "cpu" else [])


def in_precision(dtype: Precision, device: torch.device) -> torch.autocast:
    """Products in that dtype."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def estimate_bytes(model: nn.Module, recipe: TrainRecipe, teacher: nn.Module | None = None) -> int:
    """Bytes that a step takes on a device at least: weights, gradients, Adam's moments, logits, a teacher that runs."""
    logits = recipe.optimization.batch * recipe.data.length * (vocabulary(model) or 0)
    shards = processes().num_processes if _is_on("ACCELERATE_USE_FSDP") else 1
    total = _PARAMETER * sum(parameter.numel() for parameter in model.parameters()) // shards + _LOGIT * logits
    if teacher is not None and recipe.loss.runs_teacher:
        total += tensor_bytes(teacher) + (4 if recipe.optimization.dtype == "float32" else 2) * logits
    return total


def require_memory(model: nn.Module, recipe: TrainRecipe, teacher: nn.Module | None = None) -> int:
    """:func:`estimate_bytes`, if this process's device has them.

    Raises:
        ConfigError: it has not; both sizes, and what takes less.
    """
    device, needed = training_device(), estimate_bytes(model, recipe, teacher)
    held = sum(_bytes_on(device, module) for module in (model, teacher) if module is not None)
    available = held + _free_bytes(device)
    if needed > available:
        raise ConfigError(
            f"training takes at least {needed / 1e9:.1f} GB on {device}, activations on top; {available / 1e9:.1f} GB are "
            "available; use a smaller optimization.batch (and more optimization.accumulation), loss.top_k (the teacher then "
            "computes once, beforehand), optimization.gradient_checkpointing, or a smaller model"
        )
    return needed


def _bytes_on(device: torch.device, module: nn.Module) -> int:
    return tensor_bytes(module) if next(module.parameters()).device == device else 0


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory_available() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes share it
