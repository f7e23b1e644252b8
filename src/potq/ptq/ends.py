"""Embedding and head of a language model: how much the loss feels errors of their rows.

An error ``e`` of an embedding's row is one of what the blocks get, at every token that is read from that row. It changes the
loss by ``(g . e)^2 / 2`` in the mean, with the gradient ``g`` of the loss there (:mod:`potq.ptq.sensitivity`). So the second
moments of these gradients are to an embedding what those of its inputs are to a linear. An error of a head's row changes one
logit by ``e . x``, and the loss by the square of that and of the gradient at the logit. So the inputs ``x`` of a head count
by the squared gradients at its outputs, over all rows together.

How often a token occurs weighs its row as a whole. Rows are quantized one by one, so it changes nothing within one. A weight
that is both gets the sum: in the mean over rows, a row counts at the output in proportion to how often it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potq.config import Effort
from potq.data.ranks import ALONE, Ranks
from potq.errors import ModelError
from potq.nn.classes import predicts_next
from potq.nn.parts import input_device, parts_of
from potq.nn.plan import WeightPlan
from potq.nn.properties import embeddings, evaluation_mode
from potq.nn.weights import weight_of
from potq.numerics.functional import all_finite
from potq.ptq.blocks import CACHE_BYTES, Keeper, Reached, layer_input, text_chain
from potq.ptq.sensitivity import through_blocks
from potq.ptq.streaming import chain_in_parts
from potq.ptq.substitute import frozen

ENOUGH = 8192  # of the text that are enough: a pass back costs two forward
_WIDE = 8  # bits of grids that lose nothing by rounding

Add = Callable[[str, Tensor], None]
"""Takes rows ``(tokens, dim)`` whose second moments are wanted, for the module of a name."""


def calibrated_ends(model: nn.Module, targets: Sequence[WeightPlan], effort: Effort) -> list[WeightPlan]:
    """Those of ``targets`` that :func:`end_moments` are for: embeddings and heads of fewer than 8 bits."""
    if not (effort.compensate or effort.rounds) or embeddings(model, "output") is None or not predicts_next(type(model)):
        return []
    kinds = ("embedding", "head")
    narrow = [target for target in targets if target.kind in kinds and target.scheme.grid.bits < _WIDE]
    return [target for target in narrow if target.scheme.group_size != "tensor"]


def end_moments(
    model: nn.Module,
    targets: Sequence[WeightPlan],
    batches: Sequence[Tensor],
    *,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """Second moments ``(dim, dim)``, float32, by which errors of the rows of embeddings and heads are to be weighed.

    All are of the full-precision model. What the text never reaches is left out, and so is an embedding whose output is no
    multiple of its rows.

    Args:
        batches: token ids ``(windows, length)`` of this process.
        seed: of the gradients at the logits, which depend on a window's tokens alone.
        cache_bytes: what enters the blocks is in memory up to this size, beyond it in temporary files.
        ranks: the processes that share the text.

    Raises:
        ModelError: gradients that are NaN or infinite; names the module.
    """
    names = {name: target.name for target in targets for name in target.names}
    sums = {target.name: torch.zeros(target.shape[1], target.shape[1], device=input_device(model)) for target in targets}

    def add(name: str, rows: Tensor) -> None:
        rows = rows.flatten(0, -2).float()
        sums[names[name]].addmm_(rows.t(), rows)

    if batches:
        with evaluation_mode(model), frozen(model):
            modules = {name: model.get_submodule(name) for name in names}
            _take(model, modules, batches, seed, cache_bytes, add)
    tokens = sum(ranks.values(sum(batch.numel() for batch in batches)))
    found = {name: ranks.sum(total) / tokens for name, total in sums.items()}
    for name, moments in found.items():
        if not all_finite(moments):
            raise ModelError(f"{name}: its gradients on the calibration text are NaN or infinite; load the model in float32")
    return {name: moments for name, moments in found.items() if bool(moments.any())}


def _take(
    model: nn.Module, modules: dict[str, nn.Module], batches: Sequence[Tensor], seed: int, cache_bytes: int, add: Add
) -> None:
    """A model in parts goes through its blocks once for all batches, another one once for each."""
    in_parts = parts_of(model) is not None
    tables = {name: module for name, module in modules.items() if isinstance(module, nn.Embedding)}
    at_once = len(batches) if in_parts else 1
    with ExitStack() as stack:
        keep = Keeper(cache_bytes, stack)
        chain = chain_in_parts(model, batches, keep)[0] if in_parts else text_chain(model, batches, keep)
        for name in modules.keys() - tables.keys():
            watch = partial(_watch_head, partial(add, name))
            stack.callback(modules[name].register_forward_hook(watch, with_kwargs=True).remove)
        for start in range(0, len(batches), at_once):
            lot = slice(start, start + at_once)
            with ExitStack() as entered:
                gradients = through_blocks(model, chain, lot, batches[lot], seed, Keeper(cache_bytes, entered), {})
            for batch, gradient in zip(batches[lot], gradients, strict=False):  # none if hidden states are not finite
                for window, part in zip(batch.split(1), gradient.split(1), strict=True):
                    _back_to_embeddings(model, chain.blocks[0], tables, window, part, add)


def _watch_head(see: Callable[[Tensor], None], module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
    """When the gradient comes back, see the inputs of a head, each as long as that of its outputs says."""
    inputs = layer_input(args, kwargs).detach().float()

    def gone_back(gradient: Tensor) -> None:
        see(inputs * torch.linalg.vector_norm(gradient, dim=-1, keepdim=True, dtype=torch.float32).to(inputs.device))

    if output.requires_grad:
        output.register_hook(gone_back)


def _back_to_embeddings(
    model: nn.Module, first: nn.Module, tables: Mapping[str, nn.Module], window: Tensor, gradient: Tensor, add: Add
) -> None:
    """From the ``gradient`` at what enters the ``first`` block back to the rows that embeddings gave for a window."""
    leaves: dict[str, tuple[Tensor, float]] = {}
    entered: list[Tensor] = []

    def looked_up(name: str, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        leaves[name] = leaf, _factor(module, layer_input(args, kwargs), output.detach().float())
        return leaf.clone()  # the model may write into it

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])
        raise Reached

    with ExitStack() as stack, torch.enable_grad(), suppress(Reached):
        for name, module in tables.items():
            stack.callback(module.register_forward_hook(partial(looked_up, name), with_kwargs=True).remove)
        stack.callback(first.register_forward_pre_hook(stop, with_kwargs=True).remove)
        model(window.to(input_device(model)), use_cache=False)
    if not leaves:
        return
    wanted = [leaf for leaf, _ in leaves.values()]
    hidden = entered[0]
    found = torch.autograd.grad(hidden, wanted, gradient.to(hidden.device, hidden.dtype), allow_unused=True)
    for (name, (_, factor)), each in zip(leaves.items(), found, strict=True):
        if each is not None and factor:
            add(name, each * factor)


def _factor(module: nn.Module, ids: Tensor, output: Tensor) -> float:
    """What an embedding multiplies its rows by (Gemma's does); 0 if it does anything else."""
    if type(module) is nn.Embedding:
        return 1.0
    if ids.is_floating_point():  # OPT's positions: an attention mask
        return 0.0
    rows = weight_of(module).detach()[ids].float()
    factor = float((rows * output).sum() / rows.square().sum().clamp(min=torch.finfo(torch.float32).tiny))
    alike = rows.shape == output.shape and torch.allclose(output, rows * factor, rtol=0.02, atol=1e-6)
    return factor if alike else 0.0
