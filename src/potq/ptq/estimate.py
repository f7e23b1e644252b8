"""What a calibrated run will take, before it starts: operations counted, and divided by a speed that is measured now."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potq.config import EFFORTS, Effort, PoTConfig
from potq.nn.language import language_plan
from potq.nn.plan import evaluation_mode, tensor_bytes, vocabulary
from potq.ptq.blocks import TOKENS, find_blocks, record_calls, shared_inputs

_TRIAL = (1024, 576, 1536)  # the product that is timed
_SECONDS = 0.1
_FITTING = 2000  # operations a weight for the exact search of its group's scale
_DESCENT = 42  # operations per output and pair of inputs in the time of a round of descent, whose loops are not products
_COMPENSATION = 2  # the same for GPTQ
_FACTOR = 4  # operations per cubed number of inputs for the Cholesky factor of the inverse
_LEARNED = 16  # bytes a weight: value, gradient, Adam's two moments
_ROUNDED = 16  # bytes a weight of the largest matrix, while it is quantized
_LIBRARIES = 300_000_000  # bytes of torch and transformers themselves


@dataclass(frozen=True)
class Estimate:
    """Seconds and peak bytes, an order of magnitude: a measured run took about three times the seconds (docs/ptq.md)."""

    seconds: float
    bytes: int

    def __str__(self) -> str:
        if self.seconds < 90:
            shown = f"{math.ceil(self.seconds)} s"
        elif self.seconds < 5400:
            shown = f"{self.seconds / 60:.0f} min"
        else:
            shown = f"{self.seconds / 3600:.1f} h"
        return f"about {shown}, {self.bytes / 1e9:.1f} GB"


@dataclass(frozen=True)
class _Layers:
    """A block's linears in groups that share an input: each group's number of inputs, and outputs layer by layer."""

    inputs: int
    outputs: tuple[int, ...]

    @property
    def weights(self) -> int:
        return self.inputs * sum(self.outputs)


def estimate(model: nn.Module, config: PoTConfig | Effort, tokens: int) -> Estimate:
    """What :func:`potq.quantize` will take with ``tokens`` tokens of calibration text.

    Only work on blocks is counted; a config without effort counts as ``"balanced"``.

    Raises:
        ModelError: the model has no blocks.
    """
    effort = config if isinstance(config, Effort) else config.effort or EFFORTS["balanced"]
    _, blocks = find_blocks(model)
    groups = _groups(model, None if isinstance(config, Effort) else config)
    weights = sum(group.weights for group in groups) * len(blocks)
    whole = sum(parameter.numel() for parameter in model.parameters())
    operations, learned = 0.0, 0
    if effort.compensate or effort.rounds or effort.scope != "none":
        operations += len(blocks) * sum(_layer_operations(group, effort) for group in groups)
        operations += len(blocks) * tokens * _pass_operations(groups, effort)
    if effort.scope != "none":
        part = whole if effort.scope == "model" else weights
        operations += effort.epochs * tokens * 8.0 * part
        learned = _LEARNED * (weights if effort.scope == "model" else weights // len(blocks))
    # mixed precision speeds up the products of a pass, not its attention and norms: on the whole it is float32's speed
    seconds = operations / _speed(next(model.parameters()).device)
    return Estimate(seconds, tensor_bytes(model) + learned + _working_bytes(model, groups, weights, effort, tokens))


def _groups(model: nn.Module, config: PoTConfig | None) -> list[_Layers]:
    """Of the first block, in the order they run."""
    prefix, blocks = find_blocks(model)
    targets = language_plan(model, config or PoTConfig("pot4"))[1].targets
    inside = {t.name.removeprefix(f"{prefix}.0."): t.shape for t in targets if t.name.startswith(f"{prefix}.0.")}
    if not inside:
        return []
    with evaluation_mode(model), torch.no_grad():
        call = record_calls(model, [blocks[0]], [torch.zeros(1, 4, dtype=torch.long)])[0]
        found = shared_inputs(blocks[0], list(inside), [call])
    return [_Layers(inside[names[0]][1], tuple(inside[name][0] for name in names)) for names in found]


def _pass_operations(groups: list[_Layers], effort: Effort) -> float:
    """Per token of a block: its outputs, the layers before every group once more, and second moments."""
    weights = [group.weights for group in groups]
    before = sum(sum(weights[:index]) for index in range(len(weights)))
    passes = 2 if effort.scope == "block" else 1
    return 2.0 * (passes * sum(weights) + before) + sum(2.0 * group.inputs**2 for group in groups)


def _layer_operations(group: _Layers, effort: Effort) -> float:
    pair = group.inputs**2
    total = float(_FITTING * group.weights)
    if effort.compensate:
        total += len(group.outputs) * _FACTOR * group.inputs * pair + _COMPENSATION * sum(group.outputs) * pair
    return total + effort.rounds * _DESCENT * sum(group.outputs) * pair


def _working_bytes(model: nn.Module, groups: list[_Layers], weights: int, effort: Effort, tokens: int) -> int:
    """Hidden states, a layer's matrices, what is quantized so far, and logits where the whole model is refined."""
    widest = max((group.inputs for group in groups), default=0)
    tallest = max((max(group.outputs) for group in groups), default=0)
    hidden = tokens * min((group.inputs for group in groups), default=0) * 4 * (2 if effort.scope == "block" else 1)
    largest = max(parameter.numel() for parameter in model.parameters())
    total = _LIBRARIES + _ROUNDED * largest + hidden + 4 * 4 * widest**2 + 8 * 4 * widest * tallest + weights * 5 // 8
    if effort.scope == "model":
        step = min(tokens, TOKENS)
        total += step * (4 * 3 * (vocabulary(model) or 0) + 4 * sum(map(_activations, groups)))
        total += 2 * 4 * weights  # the latent weights, and those they stand for
    return total


def _activations(group: _Layers) -> int:
    return group.inputs + sum(group.outputs)


def _speed(device: torch.device) -> float:
    """Operations a second in a product of float32 matrices."""
    rows, inner, columns = _TRIAL
    a, b = (torch.ones(shape, device=device) for shape in ((rows, inner), (inner, columns)))
    _wait(a @ b)
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < _SECONDS:
        _wait(a @ b)
        count += 1
    return 2.0 * rows * inner * columns * count / elapsed


def _wait(product: Tensor) -> None:
    if product.device.type == "cuda":
        torch.cuda.synchronize(product.device)
