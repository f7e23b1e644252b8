"""GPTQ and AWQ by llm-compressor (``oneshot``): groups of 64, integer zero-points, float16 scales.

Its defaults otherwise (GPTQ quantizes columns in the order of their activations). "mse" observers search clipped ranges,
which is off by default. AWQ moves scales between linears and the norms before them, which costs no bits.

The version tested, 0.14.0.1, asks for transformers <= 5.17 but runs with 5.23 when it is installed without its dependencies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.peers.packages import optional
from benchmarks.peers.ptq.peer import (
    GROUP,
    Peer,
    grouped_bits,
    half_scales,
    linears,
    model_bits,
    replace,
    require_whole_groups,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PIP = "auto-round datasets loguru nvidia-ml-py && pip install --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0"


def require() -> Any:
    """llm-compressor, which must not log a line per layer."""
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    return optional("llmcompressor", PIP)


def apply(model: PreTrainedModel, batches: Sequence[Tensor], *, algorithm: str, bits: int, observer: str) -> float:
    library = require()
    modules = linears(model)
    for module in modules.values():
        require_whole_groups(module.weight)
    data: Any = [{"input_ids": batch[0], "attention_mask": torch.ones_like(batch[0])} for batch in batches]
    with _workarounds(model):
        library.oneshot(
            model=model,
            processor=SimpleNamespace(),  # or it looks for a tokenizer, which it does not need
            tie_word_embeddings=True,
            dataset=DataLoader(data, batch_size=1),
            recipe=_recipe(algorithm, bits, observer),
            num_calibration_samples=len(data),
            max_seq_length=max(batch.shape[1] for batch in batches),
        )
    for module in modules.values():
        _unwrap(module, bits)
    return model_bits(modules.values(), bits, zero_bits=bits)


@contextmanager
def _workarounds(model: PreTrainedModel) -> Iterator[None]:
    """It reads the model's config from a folder, which a GGUF file is not; AWQ pins memory, which needs an accelerator."""
    cache = optional("llmcompressor.pipelines.cache", PIP).IntermediatesCache
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        with patch.object(model.config, "_name_or_path", folder), patch.object(cache, "pin_memory"):
            yield


def _recipe(algorithm: str, bits: int, observer: str) -> list[Any]:
    modifiers = optional("llmcompressor.modifiers.quantization", PIP)
    quantization = optional("compressed_tensors.quantization", PIP)
    weights = quantization.QuantizationArgs(
        num_bits=bits, type="int", strategy="group", group_size=GROUP, symmetric=False, observer=observer
    )
    groups = {"linears": quantization.QuantizationScheme(targets=["Linear"], weights=weights)}
    if algorithm == "GPTQ":
        return [modifiers.GPTQModifier(ignore=["lm_head"], config_groups=groups)]
    awq = optional("llmcompressor.modifiers.transform.awq", PIP).AWQModifier
    return [awq(), modifiers.QuantizationModifier(ignore=["lm_head"], config_groups=groups)]


@torch.no_grad()
def _unwrap(module: nn.Linear, bits: int) -> None:
    """Make an ordinary linear of it, which holds the values that its codes stand for."""
    wrapped: Any = module
    quantization = optional("compressed_tensors.quantization", PIP)
    weight = quantization.fake_quantize(
        wrapped.weight, wrapped.weight_scale, wrapped.weight_zero_point, wrapped.quantization_scheme.weights
    )
    replace(module, half_scales(weight, wrapped.weight_scale, bits))
    for name in ("weight_scale", "weight_zero_point"):
        delattr(module, name)
    for name in ("quantization_scheme", "quantization_status", "quantization_enabled", "forward"):
        vars(module).pop(name, None)


PEERS = [
    Peer(
        name=f"llm-compressor {algorithm} {bits}-bit g{GROUP}{' mse' if observer.endswith('mse') else ''}",
        bits=grouped_bits(bits, zero_bits=bits),
        needs_calibration=True,
        apply=partial(apply, algorithm=algorithm, bits=bits, observer=observer),
        require=require,
        note="searches clipped ranges" if observer.endswith("mse") else "ranges from minimum and maximum",
    )
    for algorithm in ("GPTQ", "AWQ")
    for observer in ("memoryless_minmax", "memoryless_mse")
    for bits in (4, 3, 2)
]
