"""Models that are refused wherever something of theirs would be lost or misunderstood."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from potq.errors import ModelError
from potq.nn.classes import predicts_next

if TYPE_CHECKING:
    from torch import nn


def require_no_adapter(model: nn.Module) -> None:
    """Refuse a model that peft put an adapter into: it would be quantized with it, or lost.

    Raises:
        ModelError: names a module that has one.
    """
    for name, module in model.named_modules():
        if any(base.__module__.startswith("peft.") for base in type(module).__mro__):
            raise ModelError(
                f"{name or 'the model'} has an adapter ({type(module).__name__} of peft); merge it into the float model "
                "first (merge_and_unload()), or take it off (unload())"
            )


def require_weights(model: nn.Module) -> None:
    """Refuse a model with tensors that are not in memory: on the meta device, or offloaded by accelerate.

    Raises:
        ModelError: names the first one.
    """
    from potq.nn.parts import parts_of  # which imports torch

    if parts_of(model) is not None:
        raise ModelError(
            "the model was loaded with stream=True, one block in memory at a time; that serves calibrated quantization by "
            "text that is given. For anything else load it without"
        )
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(
                f"{name} is not in memory: the model is on the meta device or offloaded; load it without a device map, or "
                "let potq.load(folder, config) quantize it while it loads, which needs room for one layer in full precision"
            )


def require_shapes(model: nn.Module) -> None:
    """Refuse a model with lazy layers that never ran: their weights have no shape yet.

    Raises:
        ModelError: names the first one.
    """
    from torch.nn.parameter import is_lazy

    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(f"{name} has no shape yet: its layer is lazy; run the module on an input first")


def require_causal(model: nn.Module, *, predicting: bool = False) -> None:
    """Refuse a model that a text by itself cannot pass, or (``predicting``) one that predicts no tokens.

    Raises:
        ModelError: names its class.
    """
    kind, config, head = type(model).__name__, getattr(model, "config", None), getattr(model, "get_output_embeddings", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{kind} is an encoder-decoder, and token batches are for causal language models; give its inputs by name "
            "(potq.load_inputs)"
        )
    if (main := getattr(model, "main_input_name", "input_ids")) != "input_ids":
        raise ModelError(f"{kind} reads {main}, not token batches; give its inputs by name (potq.load_inputs)")
    if predicting and callable(head) and head() is None:
        raise ModelError(f"{kind} has no head that predicts tokens; this is for causal language models")
    if predicting and not predicts_next(type(model)):
        raise ModelError(f"{kind} does not predict the next token; this is for causal language models")
