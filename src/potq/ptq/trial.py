"""The pieces of a calibrated run, tried on one block and one batch of text, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from potq.config import Effort, PoTConfig
from potq.nn.losses import divergence
from potq.nn.parts import bring
from potq.nn.plan import WeightPlan
from potq.nn.precision import mixed_precision
from potq.nn.properties import evaluation_mode
from potq.nn.weights import linear_weight, matrix_of
from potq.numerics.scheme import QuantScheme
from potq.ptq.algorithms.gptq import fit_groups
from potq.ptq.algorithms.hessian import Hessian, NotFactorableError
from potq.ptq.algorithms.rounding import SchemeRounding, round_to_nearest
from potq.ptq.blocks import Call, HiddenStates, find_blocks, record_calls, shared_inputs
from potq.ptq.experts import Moments, experts_apart, is_weighed, together
from potq.ptq.layer import Found, panels, quantize_layer
from potq.ptq.refinement import Refinement, refine_block
from potq.ptq.sensitivity import gradient_at_the_end, gradient_before
from potq.ptq.share import Share
from potq.ptq.streaming import Extras, noted
from potq.ptq.substitute import frozen
from potq.ptq.weight import quantize_weight

_ROWS = 256  # of a layer, which its time is extrapolated from
_SLICE = 1 << 17  # weights of a matrix that is rounded to nearest
_SHORT = 0.05  # seconds; shorter pieces are timed again, warm
_STEPS = 3

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Trial:
    """Seconds, for one batch of text and one block.

    Attributes:
        weights: of the block's layers that are quantized.
        plain: a pass through the block as the model computes it.
        mixed: the same in mixed precision, where that is faster.
        moments: second moments of the inputs of all layers, with the passes that they take.
        back: a pass forward and back for the weights of tokens or for embedding and head, and one more forward before it.
        end: the gradients at the logits, and back to the last block.
        factors: of the second moments; these and ``layers`` do not depend on the text.
        layers: quantizing all layers.
        step: a step of refinement of the block.
        head: the model's logits, their divergence, and its gradients.
    """

    weights: int
    plain: float = 0.0
    mixed: float = 0.0
    moments: float = 0.0
    back: float = 0.0
    end: float = 0.0
    factors: float = 0.0
    layers: float = 0.0
    step: float = 0.0
    head: float = 0.0


def try_block(
    model: nn.Module, targets: Sequence[WeightPlan], effort: Effort, batch: Tensor, *, ends: bool = False
) -> Trial:
    """Time the pieces of ``effort`` on the first block that has one of the ``targets``; the model stays as it is.

    ``ends``: embedding or head are calibrated too, so that passes go back.

    Raises:
        ModelError: the model has no blocks; NaN activations.
    """
    prefix, blocks = find_blocks(model)
    for index, block in enumerate(blocks):
        start = f"{prefix}.{index}."
        inside = {t.name.removeprefix(start): t for t in targets if t.name.startswith(start)}
        if inside:
            with evaluation_mode(model), frozen(model):
                call = record_calls(model, [block], [batch])[0]
                end = _end(model, block, call, batch) if effort.weigh_tokens or ends else 0.0
                bring(model, start)
                with experts_apart(block, inside) as experts:
                    weighed = [name for name in inside if name in experts.apart] if effort.weigh_tokens else []
                    tried = _try(model, block, start, experts.apart, effort, call, weighed)
                    back = _seconds(partial(_back, block, weighed, call)) if effort.weigh_tokens or ends else 0.0
                    return replace(tried, back=back, end=end)
    return Trial(0)


def _try(
    model: nn.Module,
    block: nn.Module,
    prefix: str,
    inside: dict[str, WeightPlan],
    effort: Effort,
    call: Call,
    weighed: list[str],
) -> Trial:
    """``weighed``: those of the layers ``inside`` whose tokens get weights."""
    seen = HiddenStates([call])
    groups = together(shared_inputs(block, list(inside), seen))
    alike = torch.ones(call.hidden.shape[:-1].numel())
    take = Moments(block, groups, seen, prefix, weights={prefix + name: alike for name in weighed})
    moments, factors, layers = 0.0, 0.0, 0.0
    for group in groups:
        apart = group if is_weighed(group, weighed) else group[:1]
        found, seconds = _timed(partial(list[Tensor], map(take, apart)))
        moments += seconds
        hessian = Hessian(found[0], effort.damping)
        factors += len(apart) * _factor_seconds(hessian, effort)
        rates: dict[QuantScheme, float] = {}
        for name in group:
            scheme = inside[name].scheme
            if scheme.group_size != "tensor":
                weight = linear_weight(block.get_submodule(name)).detach()
                rate = rates.get(scheme) or rates.setdefault(scheme, _row_seconds(weight, scheme, hessian, effort))
                layers += rate * len(weight)
    return Trial(
        weights=sum(target.weights for target in inside.values()),
        plain=_seconds(lambda: _pass(block, call, mixed=False)),
        mixed=_seconds(lambda: _pass(block, call, mixed=True)),
        moments=moments,
        factors=factors,
        layers=layers,
        step=_step(block, inside, groups, effort, seen) if effort.scope != "none" else 0.0,
        head=_head(model, call) if effort.scope == "model" else 0.0,
    )


def rounding_seconds(model: nn.Module, targets: Sequence[WeightPlan], config: PoTConfig) -> float:
    """What rounding ``targets`` to nearest takes, from a slice of a matrix of every scheme."""
    total, rates = 0.0, {}
    for target in targets:
        if target.scheme not in rates:
            rows = max(1, min(target.shape[0], _SLICE // target.shape[1]))
            bring(model, target.name)
            weight = matrix_of(model, target.name)[:rows]
            part = replace(target, shape=(rows, target.shape[1]), experts=0)
            seconds = _seconds(partial(quantize_weight, weight, part, config))
            rates[target.scheme] = seconds / weight.numel()
        total += rates[target.scheme] * target.weights
    return total


def read_block(model: nn.Module, name: str) -> tuple[int, float]:
    """Bytes of block ``name`` of a model in parts, and the seconds that reading it takes once."""
    began = time.perf_counter()
    bring(model, name)
    tensors = list(model.get_submodule(name).parameters())
    for tensor in tensors:
        tensor.detach().amax()
    return sum(tensor.nbytes for tensor in tensors), time.perf_counter() - began


@torch.no_grad()
def _pass(block: nn.Module, call: Call, *, mixed: bool) -> None:
    with call.precision() if mixed else torch.no_grad():
        call(block)


def _back(block: nn.Module, names: list[str], call: Call) -> None:
    """What a batch takes in a block for the weights of its tokens."""
    _pass(block, call, mixed=True)
    seen = list[Tensor]()
    gradient_before(block, call, call.hidden, torch.ones_like(call.hidden), dict.fromkeys(names, seen.append))


def _end(model: nn.Module, block: nn.Module, call: Call, batch: Tensor) -> float:
    """Seconds that gradients at the logits take, and back to the last block."""
    extras = Extras()
    with noted([block], extras):
        _pass(block, call, mixed=True)
    alike: Extras = dict.fromkeys(find_blocks(model)[1], extras[block])
    return _seconds(partial(gradient_at_the_end, model, alike, batch, call.hidden, 0))


def _factor_seconds(hessian: Hessian, effort: Effort) -> float:
    """Of the inverse, once for all layers that share second moments."""
    if not effort.compensate:
        return 0.0
    with suppress(NotFactorableError):
        return _timed(partial(hessian.factor, ordered=effort.ordered))[1]
    return 0.0


def _row_seconds(weight: Tensor, scheme: QuantScheme, hessian: Hessian, effort: Effort) -> float:
    """Of a layer that has its factor: as many rows as are quantized at a time, or fewer, take their part of the whole."""
    part = weight[panels(weight, SchemeRounding(scheme))[0]][:_ROWS]
    rounding = SchemeRounding.of(part, scheme, hessian.moments)
    return _seconds(partial(quantize_layer, part, hessian, rounding, effort)) / len(part)


def _step(
    block: nn.Module, inside: dict[str, WeightPlan], groups: list[list[str]], effort: Effort, seen: HiddenStates
) -> float:
    """Of the block's refinement: forward and backward pass and Adam, without the first, which makes Adam's state."""
    found: Found = {}
    for name in (name for group in groups for name in group if inside[name].scheme.group_size != "tensor"):
        weight = linear_weight(block.get_submodule(name)).detach().float()
        rounding = SchemeRounding.of(weight, inside[name].scheme, None)
        ones = torch.ones(weight.shape[1], device=weight.device)
        found[name] = round_to_nearest(weight, *fit_groups(weight, ones, rounding), rounding), rounding, ""
    ends: list[float] = []
    tried = effort.model_copy(update={"epochs": _STEPS})
    refinement = Refinement(seen, Share.whole([], len(seen.calls)), 0)
    refine_block(block, found, seen, refinement, tried, lambda *_: ends.append(time.perf_counter()))
    return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0


def _head(model: nn.Module, call: Call) -> float:
    """Logits of teacher and student, their divergence, and its gradients."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if head is None:
        return 0.0

    def work() -> None:
        with mixed_precision(call.hidden.device):
            with torch.no_grad():
                teacher = head(call.hidden)
            hidden = call.hidden.detach().requires_grad_(True)
            divergence(head(hidden), teacher).backward()

    with torch.enable_grad():
        return _seconds(work)


def _seconds(work: Callable[[], object]) -> float:
    elapsed = _timed(work)[1]
    return elapsed if elapsed > _SHORT else _timed(work)[1]


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    began = time.perf_counter()
    result = work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return result, time.perf_counter() - began
