"""Of a model as a whole: its mode, its embeddings, what is tied, its sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from potq.errors import ModelError
from potq.nn.packed import PackedModule
from potq.nn.packed_model import packed_modules
from potq.nn.precision import dtypes_here, fast_products


def embeddings(model: nn.Module, side: Literal["input", "output"]) -> nn.Module | None:
    """The model's input embedding or its head, if it has one."""
    getter = getattr(model, f"get_{side}_embeddings", None)
    try:
        module = getter() if callable(getter) else None
    except NotImplementedError:  # of two towers, say
        module = None
    return module if isinstance(module, nn.Module) else None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards each in the mode it was in; products by :func:`fast_products`."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with fast_products(dtypes_here(model)):
            yield
    finally:
        for module in training:
            module.training = True


def is_tied(model: nn.Module) -> bool:
    """Whether the head shares its weight with an embedding, packed or not; models without a head have nothing to untie.

    That need not be the input embedding: encoder-decoders tie the decoder's.
    """
    head = embeddings(model, "output")
    if head is None or embeddings(model, "input") is None:
        return True
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return any(_owner(table) is _owner(head) for table in tables)


def _owner(module: nn.Module) -> object:
    """What two modules that share a weight have in common."""
    return (module.tied_to or module) if isinstance(module, PackedModule) else module.weight


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of the model's state dict, shared tensors counted once; meta tensors count as if they were there."""
    return sum({_storage(tensor): tensor.nbytes for tensor in _tensors(model)}.values())


def weight_count(model: nn.Module) -> int:
    """Weights of the model: a packed matrix's, not its codes and scales, and every other stored tensor's, each once."""
    packed = [module.quantized for module in packed_modules(model).values() if module.tied_to is None]
    parts = {_storage(tensor) for weight in packed for tensor in weight.tensors().values()}
    others = {_storage(tensor): tensor.numel() for tensor in _tensors(model) if _storage(tensor) not in parts}
    total: int = sum(others.values()) + sum(math.prod(weight.shape) for weight in packed)
    return total


def _tensors(model: nn.Module) -> list[Tensor]:
    """Of the state dict, which may hold more than tensors."""
    return [tensor for tensor in model.state_dict().values() if isinstance(tensor, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def vocabulary(model: nn.Module) -> int | None:
    """How many token ids the model knows, if its config says so."""
    return _of_text(model, "vocab_size")


def require_same_vocabulary(model: nn.Module, reference: nn.Module) -> None:
    """Refuse a reference model that predicts other tokens.

    Raises:
        ModelError: says how many tokens each knows.
    """
    own, other = vocabulary(model), vocabulary(reference)
    if own != other:
        raise ModelError(
            f"the reference has a vocabulary of {other} tokens, the model of {own}; compare with the model it was made from"
        )


def longest_text(model: nn.Module) -> int | None:
    """How many tokens the model has positions for, if its config says so."""
    return _of_text(model, "max_position_embeddings")


def _of_text(model: nn.Module, key: str) -> int | None:
    text_config = getattr(model.config, "get_text_config", lambda: model.config)()
    return getattr(text_config, key, None)
