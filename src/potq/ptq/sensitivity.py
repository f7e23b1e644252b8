"""How much the loss feels each token at each layer: the weights of tokens in second moments.

An error ``e`` of a layer's output at a token changes the loss by ``(g . e)^2 / 2`` in the mean, with the gradient ``g`` of
the loss there: predictions are at a minimum of their divergence from themselves. A layer's tokens are weighed by the mean
of ``g^2`` over its outputs, as GuidedQuant (2505.07004, section 3) does. All is of the full-precision model, by one pass
forward and one back through its blocks: a batch at a time, or of a model in parts all of them, so that each is read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from potq.data.ranks import ALONE, Ranks
from potq.errors import ModelError
from potq.nn.parts import input_device, parts_of
from potq.numerics.functional import all_finite
from potq.ptq.blocks import CACHE_BYTES, Call, Chain, Keeper
from potq.ptq.streaming import Extras, handing_on, noted
from potq.resume import content_hash

TokenWeights = dict[str, Tensor]
"""Of layers by their names in the model: float32 ``(tokens,)``, call after call, with a mean of 1 over the text."""

_ROWS = 256  # of logits, in float32 at a time


def token_weights(
    model: nn.Module,
    chain: Chain,
    batches: Sequence[Tensor],
    names: Sequence[str],
    *,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
    ranks: Ranks = ALONE,
) -> TokenWeights:
    """A weight for every token that enters each of the named layers; the model's parameters get no gradients.

    A layer is left out if it does not run once on all tokens (experts), or if the loss does not depend on it.

    Args:
        chain: the blocks of ``model`` and their calls on ``batches``, not advanced yet.
        batches: token ids ``(windows, length)``, one for each call.
        seed: of the gradients at the logits. They depend on a window's tokens, not on which process has it, or when.
        cache_bytes: what enters the blocks is in memory up to this size, beyond it in temporary files.
        ranks: the processes that share the text; means are over all of it.

    Raises:
        ModelError: gradients that are NaN or infinite where hidden states are not; names the layer.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    at_once = 1 if parts_of(model) is None else len(batches)
    for start in range(0, len(batches), at_once):
        lot = slice(start, start + at_once)
        with ExitStack() as stack:
            through_blocks(model, chain, lot, batches[lot], seed, Keeper(cache_bytes, stack), found)
    tokens = sum(batch.numel() for batch in batches)
    joined = {name: torch.cat(parts) if parts else torch.empty(0) for name, parts in found.items()}
    energies = ranks.values({name: (len(each), float(each.sum(dtype=torch.float64))) for name, each in joined.items()})
    shares = ranks.values(tokens)
    weights: TokenWeights = {}
    for name, each in joined.items():
        energy = sum(energy[name][1] for energy in energies)
        if energy > 0 and all(energy[name][0] == share for energy, share in zip(energies, shares, strict=True)):
            weights[name] = each * (sum(shares) / energy)
    return weights


def through_blocks(
    model: nn.Module,
    chain: Chain,
    lot: slice,
    batches: Sequence[Tensor],
    seed: int,
    keep: Keeper,
    found: dict[str, list[Tensor]],
) -> list[Tensor]:
    """Forward through all blocks, keeping what enters each; then back, a block's pass made again for its gradients.

    Args:
        lot: the calls of ``chain``, on these ``batches``.
        found: squared gradients at the outputs of the layers of these names, as :func:`token_weights` wants them.

    Returns:
        The gradients at what enters the first block, for each call; none if its hidden states became NaN or infinite.
    """
    calls = chain.calls[lot]
    entered, extras = [[call.hidden for call in calls]], Extras()
    with torch.no_grad(), noted(chain.blocks, extras):
        for block in chain.blocks:
            entered.append([keep(_output(block, call, hidden)) for call, hidden in zip(calls, entered[-1], strict=True)])
    last = entered.pop()
    if not all(map(all_finite, last)):
        return []  # second moments will name the layer
    gradients = [gradient_at_the_end(model, extras, *each, seed) for each in zip(batches, last, strict=True)]
    for start, block in reversed(list(zip(chain.names, chain.blocks, strict=True))):
        inside = {name: name.removeprefix(f"{start}.") for name in found if name.startswith(f"{start}.")}
        states = entered.pop()
        for index, call in enumerate(calls):
            squares: dict[str, list[Tensor]] = {name: [] for name in inside}
            watch = {inside[name]: each.append for name, each in squares.items()}
            gradients[index] = gradient_before(block, call, states[index], gradients[index], watch)
            for name, each in squares.items():
                if len(each) == 1 and len(each[0]) == batches[index].numel():
                    if not all_finite(each[0]):
                        problem = "its gradients on the calibration text are NaN or infinite; load the model in float32"
                        raise ModelError(f"{name}: {problem}")
                    found[name] += each
    return gradients


def _output(block: nn.Module, call: Call, hidden: Tensor) -> Tensor:
    with call.precision():
        return replace(call, hidden=hidden)(block)


def gradient_at_the_end(model: nn.Module, extras: Extras, ids: Tensor, hidden: Tensor, seed: int) -> Tensor:
    """The gradient at the ``hidden`` states that the last block put out for ``ids``, a window at a time.

    Blocks, with their ``extras`` in the order they run, hand on what they get meanwhile.
    """
    first, gradients = next(iter(extras)), list[Tensor]()
    for window, states in zip(ids.split(1), hidden.split(1), strict=True):
        leaf = states.detach().to(input_device(model)).requires_grad_()

        def begin(module: nn.Module, args: Any, kwargs: Any, leaf: Tensor = leaf) -> Any:
            return ((leaf.clone(), *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": leaf.clone()})

        handle = first.register_forward_pre_hook(begin, with_kwargs=True)
        try:
            with torch.enable_grad(), handing_on(list(extras), extras):
                logits = model(window.to(leaf.device), use_cache=False).logits
                (gradient,) = torch.autograd.grad(logits, leaf, drawn_gradient(logits.detach(), _seed(window, seed)))
        finally:
            handle.remove()
        gradients.append(gradient.to(hidden.device))
    return torch.cat(gradients)


def _seed(window: Tensor, seed: int) -> int:
    return int(content_hash([(seed, window)], []), 16) % 2**63


def drawn_gradient(logits: Tensor, seed: int) -> Tensor:
    """A random gradient at ``logits`` ``(..., vocabulary)``, of mean 0 and covariance ``diag(p) - p p^T`` for their
    probabilities ``p``: that of the cross entropy of labels drawn from ``p``, the Fisher information.

    Labels would do in the mean. But where predictions are sure most labels give next to no gradient, and a few a large one.
    Numbers from a normal distribution have the same covariance with far less luck.
    """
    generator = torch.Generator(logits.device).manual_seed(seed)
    rows = logits.reshape(-1, logits.shape[-1])
    gradient = torch.empty_like(rows)
    for some, into in zip(rows.split(_ROWS), gradient.split(_ROWS), strict=True):
        p = some.float().softmax(-1)
        noise = torch.randn(p.shape, generator=generator, device=p.device).mul_(p.sqrt())
        into.copy_(noise - p * noise.sum(-1, keepdim=True))
    return gradient.view(logits.shape)


def gradient_before(
    block: nn.Module, call: Call, hidden: Tensor, gradient: Tensor, watch: dict[str, Callable[[Tensor], None]]
) -> Tensor:
    """The gradient at what enters ``block``; of the layers to ``watch``, mean squares of gradients over the outputs."""

    def hook(see: Callable[[Tensor], None]) -> Callable[[nn.Module, Any, Tensor], None]:
        def gone_back(gradient: Tensor) -> None:
            see(gradient.reshape(-1, gradient.shape[-1]).float().square().mean(-1))

        def ran(module: nn.Module, args: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(gone_back)

        return ran

    leaf = hidden.detach().to(call.device).requires_grad_()
    with ExitStack() as stack, torch.enable_grad():
        for name, see in watch.items():
            stack.callback(block.get_submodule(name).register_forward_hook(hook(see)).remove)
        output = _output(block, call, leaf.clone())  # a block may write into what it gets
        (found,) = torch.autograd.grad(output, leaf, gradient.to(output.device, output.dtype))
    return found
