"""The blocks of a language model that is read in parts, and their calls on text: each is read once, not for every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from potq.ptq.blocks import Call, Chain, find_blocks, record_calls

Extras = dict[nn.Module, tuple[Any, ...] | None]
"""What each block puts out beside hidden states; None where it puts out these alone, and no tuple."""

_SLOW = "what the model gives its blocks depends on what they put out, so every block was read for every batch of text"


def chain_in_parts(model: nn.Module, batches: Sequence[Tensor], keep: Callable[[Tensor], Tensor]) -> tuple[Chain, list[str]]:
    """What :func:`potq.ptq.blocks.text_chain` finds, and remarks on how.

    The first batch runs as ever. For the others blocks hand on what they get: what the model gives its blocks beside hidden
    states (masks, positions) rarely depends on these. If the first batch shows that it does, all batches run as ever.

    Raises:
        ModelError: as :func:`potq.ptq.blocks.record_calls`.
    """
    prefix, found = find_blocks(model)
    names, blocks = [f"{prefix}.{index}" for index in range(len(found))], list(found)
    extras = Extras()
    with noted(blocks, extras):
        first = record_calls(model, blocks, batches[:1])[0]
    if all(value is None for values in extras.values() for value in values or ()):
        with handing_on(blocks, extras):
            calls = record_calls(model, blocks, batches, keep)
        if _alike(calls[0], first):
            return Chain(names, blocks, [replace(call, text=first.text) for call in calls]), []
    return Chain(names, blocks, record_calls(model, blocks, batches, keep)), [_SLOW]


@contextmanager
def noted(blocks: Sequence[nn.Module], extras: Extras) -> Iterator[None]:
    """Note the ``extras`` of blocks that run."""

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        extras[module] = output[1:] if isinstance(output, tuple) else None

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(note).remove)
        yield


@contextmanager
def handing_on(blocks: Sequence[nn.Module], extras: Extras) -> Iterator[None]:
    """Blocks that put out the hidden states that they get, and the ``extras`` that were noted."""

    def put_out(extra: tuple[Any, ...] | None) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return hidden if extra is None else (hidden, *extra)

        return forward

    before = {block: block.__dict__.get("forward") for block in blocks}  # a model in parts has one of its own
    try:
        for block in blocks:
            block.forward = put_out(extras.get(block))
        yield
    finally:
        for block, forward in before.items():
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = forward


def _alike(call: Call, other: Call) -> bool:
    if not torch.equal(call.hidden, other.hidden):
        return False
    return all(_same(call.others[block], other.others[block]) for block in call.others)


def _same(value: Any, other: Any) -> bool:
    (leaves, form), (others, other_form) = tree_flatten(value), tree_flatten(other)
    return form == other_form and all(map(_equal, leaves, others))


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.dtype == other.dtype and torch.equal(value, other)
    return value is other or (type(value) is type(other) and bool(value == other))
