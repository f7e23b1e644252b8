"""What a calibrated run will take, before it starts: its pieces are tried on one block, its memory is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potq.config import EFFORTS, Effort, PoTConfig
from potq.nn.language import language_plan
from potq.nn.parts import bring, parts_of
from potq.nn.plan import WeightPlan
from potq.nn.properties import evaluation_mode, tensor_bytes, vocabulary
from potq.nn.report import duration
from potq.ptq.blocks import CACHE_BYTES, TOKENS, find_blocks, first_tokens, merge, record_calls, shared_inputs
from potq.ptq.calibration import check_batches
from potq.ptq.effort import effort_in_parts
from potq.ptq.ends import ENOUGH, calibrated_ends
from potq.ptq.experts import MOMENT_BYTES, experts_apart
from potq.ptq.layer import WEIGHTS
from potq.ptq.run import REPORTED_TOKENS
from potq.ptq.trial import read_block, rounding_seconds, try_block

_REPORT_PASSES = 3  # passes that output errors cost: one, and two products a layer
_LEARNED = 16  # bytes a weight: value, gradient, Adam's two moments
_ROUNDED = 16  # bytes a weight of the largest matrix, while it is quantized
_COPIES = 16  # of the rows of a layer that are quantized at a time
_LIBRARIES = 300_000_000  # bytes of torch and transformers themselves
_READ = 5  # times that a model in parts is read: checks, fingerprint, a first batch, the work itself, errors of the weights
_READ_FOR_WEIGHTS = 2  # of tokens: forward and back
_READ_FOR_ENDS = 3  # the same for embedding and head, and a first batch
_LOGITS = 4  # arrays of a window's logits for them: these, their gradient, and what comes between


@dataclass(frozen=True)
class Estimate:
    """Seconds and peak bytes."""

    seconds: float
    bytes: int

    def __str__(self) -> str:
        return f"about {duration(self.seconds)}, {self.bytes / 1e9:.1f} GB"


@dataclass(frozen=True)
class _Layers:
    """A block's linears in groups that share an input: each group's number of inputs, and outputs layer by layer."""

    inputs: int
    outputs: tuple[int, ...]


def estimate(model: nn.Module, config: PoTConfig | Effort, batches: Sequence[Tensor], *, processes: int = 1) -> Estimate:
    """What :func:`potq.quantize` will take with ``batches`` of calibration text.

    Pieces of the work are done on one block and timed, which takes a small part of the whole. A config without effort counts
    as ``"balanced"``, an effort without config as one of ``pot4``. Several ``processes`` share text and rows; the bytes are
    those of each.

    Raises:
        DataError: batches that the model cannot read.
        ModelError: the model has no blocks; NaN activations.
    """
    batches = check_batches(batches, model) if batches else []
    effort = config if isinstance(config, Effort) else config.effort or EFFORTS["balanced"]
    in_parts = parts_of(model) is not None
    effort = effort_in_parts(effort)[0] if in_parts else effort
    config = PoTConfig("pot4") if isinstance(config, Effort) else config
    prefix, blocks = find_blocks(model)
    targets = language_plan(model, config)[1].targets
    inside = [target for target in targets if target.name.startswith(f"{prefix}.")]
    groups, weights = _groups(model, config), sum(target.weights for target in inside)
    calibrated = inside if effort.calibrated and batches else []
    ends = calibrated_ends(model, targets, effort) if calibrated else []
    seconds = rounding_seconds(model, [target for target in targets if target not in (*calibrated, *ends)], config)
    if calibrated:
        seconds += _calibrated_seconds(model, calibrated, ends, effort, merge(batches), len(blocks), processes)
        seconds += _reading_seconds(model, batches, effort, ends=bool(ends)) if in_parts else 0.0
    learned = 0
    if effort.scope != "none":
        learned = _LEARNED * (weights if effort.scope == "model" else weights // len(blocks))
    if in_parts:
        found = _bytes_in_parts(model, groups, effort, batches, ends=bool(ends))
        return Estimate(seconds, learned + found + _moments_of_experts(calibrated))
    working = _working_bytes(model, groups, weights, effort, batches, processes, ends=bool(ends))
    return Estimate(seconds, tensor_bytes(model) + learned + working + _moments_of_experts(calibrated))


def _calibrated_seconds(
    model: nn.Module,
    targets: Sequence[WeightPlan],
    ends: Sequence[WeightPlan],
    effort: Effort,
    batches: list[Tensor],
    blocks: int,
    processes: int,
) -> float:
    tried = try_block(model, targets, effort, batches[0], ends=bool(ends))
    part = sum(target.weights for target in targets) / tried.weights  # blocks' worth of layers
    times = sum(batch.numel() for batch in batches) / batches[0].numel()
    passes = 2 if effort.scope == "block" else 1
    seconds = part * (tried.layers + times * tried.moments) + blocks * times * (tried.plain + passes * tried.mixed)
    if effort.weigh_tokens:
        seconds += times * (blocks * tried.back + tried.end)
    if ends:
        seconds += min(times, ENOUGH / batches[0].numel()) * (blocks * tried.back + tried.end)
        seconds += processes * tried.layers * sum(target.weights for target in ends) / tried.weights  # not shared
    steps = effort.epochs * times
    if effort.scope == "block":
        seconds += part * steps * tried.step
    if effort.scope == "model":
        seconds += steps * (part * tried.step + blocks * tried.mixed + tried.head)
    reported = min(times, REPORTED_TOKENS / batches[0].numel())
    seconds += _REPORT_PASSES * reported * blocks * tried.plain
    return seconds / processes + part * tried.factors  # which each computes for itself


def _moments_of_experts(targets: Sequence[WeightPlan]) -> int:
    """Second moments of the experts of a stack, which are taken together."""
    return max((min(MOMENT_BYTES, target.experts * 4 * target.shape[1] ** 2) for target in targets), default=0)


def _groups(model: nn.Module, config: PoTConfig) -> list[_Layers]:
    """Of the first block, in the order they run."""
    prefix, blocks = find_blocks(model)
    targets = language_plan(model, config)[1].targets
    inside = {t.name.removeprefix(f"{prefix}.0."): t for t in targets if t.name.startswith(f"{prefix}.0.")}
    if not inside:
        return []
    with evaluation_mode(model), torch.no_grad():
        call = record_calls(model, [blocks[0]], [torch.zeros(1, 4, dtype=torch.long)])[0]
        bring(model, f"{prefix}.0")
        with experts_apart(blocks[0], inside) as experts:
            found = shared_inputs(blocks[0], list(experts.apart), [call])
    shapes = {name: target.shape for name, target in experts.apart.items()}
    return [_Layers(shapes[names[0]][1], tuple(shapes[name][0] for name in names)) for names in found]


def _working_bytes(
    model: nn.Module,
    groups: list[_Layers],
    weights: int,
    effort: Effort,
    batches: Sequence[Tensor],
    processes: int,
    *,
    ends: bool,
) -> int:
    """Hidden states, a layer's matrices, what is quantized so far, and logits where the whole model is refined."""
    tokens = -(-sum(batch.numel() for batch in batches) // processes)
    widest = max((group.inputs for group in groups), default=0)
    tallest = max((max(group.outputs) for group in groups), default=0)
    hidden = tokens * min((group.inputs for group in groups), default=0) * 4 * (2 if effort.scope == "block" else 1)
    largest = max(parameter.numel() for parameter in model.parameters())
    weighing = _weighing_bytes(model, groups, batches, min(tokens, TOKENS)) if effort.weigh_tokens or ends else 0
    rounding = _layer_bytes(widest, widest * tallest) + weights * 5 // 8
    total = _LIBRARIES + _ROUNDED * largest + hidden + max(rounding, weighing)
    if effort.scope == "model":
        step = min(tokens, TOKENS)
        total += step * (4 * 3 * (vocabulary(model) or 0) + 4 * sum(map(_activations, groups)))
        total += 2 * 4 * weights  # the latent weights, and those they stand for
    return total


def _weighing_bytes(model: nn.Module, groups: list[_Layers], batches: Sequence[Tensor], tokens: int) -> int:
    """For the weights of tokens: what enters the blocks, of as many tokens as pass together; logits of a window."""
    entered = len(find_blocks(model)[1]) * tokens * min((group.inputs for group in groups), default=0) * 4
    window = max((batch.shape[1] for batch in batches), default=0)
    return min(CACHE_BYTES, entered) + _LOGITS * 4 * window * (vocabulary(model) or 0)


def _reading_seconds(model: nn.Module, batches: Sequence[Tensor], effort: Effort, *, ends: bool) -> float:
    """Of a model in parts: what reading it over and over takes, by the time that a block takes."""
    prefix, blocks = find_blocks(model)
    size, seconds = read_block(model, f"{prefix}.{len(blocks) - 1}")
    passes = (
        _READ
        + _READ_FOR_WEIGHTS * effort.weigh_tokens
        + _READ_FOR_ENDS * ends
        + len(merge(first_tokens(batches, REPORTED_TOKENS)))
    )
    return seconds * passes * tensor_bytes(model) / size


def _bytes_in_parts(
    model: nn.Module, groups: list[_Layers], effort: Effort, batches: Sequence[Tensor], *, ends: bool
) -> int:
    """A block and its quantized copy, a layer's matrices, hidden states; or embeddings and head, if they are larger."""
    tokens = sum(batch.numel() for batch in batches)
    weighed = tokens if effort.weigh_tokens else min(tokens, ENOUGH)
    weighing = _weighing_bytes(model, groups, batches, weighed) if effort.weigh_tokens or ends else 0
    prefix, blocks = find_blocks(model)
    block = max(map(tensor_bytes, blocks))
    outside = sum(p.nbytes for name, p in model.named_parameters() if not name.startswith(f"{prefix}."))
    widest = max((group.inputs for group in groups), default=0)
    layer = max((group.inputs * max(group.outputs) for group in groups), default=0)
    hidden = tokens * min((group.inputs for group in groups), default=0) * 4 * (2 if effort.scope == "block" else 1)
    return _LIBRARIES + hidden + max(outside + weighing, 2 * block + _layer_bytes(widest, layer))


def _layer_bytes(widest: int, largest: int) -> int:
    """Of the widest layer's second moments and their factor, the largest layer's values, before and after, and some rows."""
    return 2 * 4 * widest**2 + 2 * 4 * largest + _COPIES * 4 * min(largest, WEIGHTS)


def _activations(group: _Layers) -> int:
    return group.inputs + sum(group.outputs)
