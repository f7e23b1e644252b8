"""A packed model: its packed modules, and what its class, which stands for the float model's, knows beyond that."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from potq.nn.lazy import no_training
from potq.nn.packed import PackedModule, unpack_module
from potq.nn.plain import forget_config
from potq.nn.refusals import require_no_adapter, require_weights
from potq.nn.stacked import PoTStack, stack_name

_FLOAT_CLASS = "_potq_float_class"


def as_packed_model(model: nn.Module) -> None:
    """Have ``model`` refuse to train as a whole: ``requires_grad_()`` would reach its norms, and no packed weight.

    One without a float parameter left (OLMo's norms have none) gets a ``dtype`` and a ``device``: transformers reads both
    off the first parameter, and peft a device map. One that is no model of transformers' gets ``dequantize()``, which
    theirs have.
    """
    as_float_model(model)
    kind: Any = type(model)
    model.__class__ = _packed_class(kind, next(model.parameters(), None) is None and hasattr(kind, "dtype"))


def as_float_model(model: nn.Module) -> None:
    """The inverse of :func:`as_packed_model`."""
    model.__class__ = getattr(type(model), _FLOAT_CLASS, type(model))


@cache
def _packed_class(kind: Any, bare: bool) -> Any:
    def requires_grad_(self: nn.Module, requires_grad: bool = True) -> Any:
        if requires_grad:
            raise no_training(f"{kind.__name__} with packed weights")
        return super(made, self).requires_grad_(False)

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        return _unpickled, (kind, bare), self.__dict__  # the class made here has no name that could be imported

    members = {"__module__": kind.__module__, _FLOAT_CLASS: kind, "requires_grad_": requires_grad_, "__reduce_ex__": reduce}
    if not hasattr(kind, "dequantize"):
        members["dequantize"] = dequantize
    if bare:
        members["dtype"] = property(lambda self: _first_packed(self).compute_dtype)
        members["device"] = property(lambda self: _first_packed(self).quantized.packed.device)
        members["hf_device_map"] = _WholeMap()
    made: Any = type(kind.__name__, (kind,), members)
    return made


class _WholeMap:
    """The map of a model on one device; one that accelerate sets on the model itself comes before it."""

    def __get__(self, model: Any, kind: Any = None) -> Any:
        return self if model is None else {"": model.device}


def _unpickled(kind: Any, bare: bool) -> Any:
    made = _packed_class(kind, bare)
    return made.__new__(made)


@torch.no_grad()
def dequantize(model: nn.Module) -> nn.Module:
    """Put float weights, in the dtypes computed in, in place of packed ones; the module is a plain one again.

    Raises:
        ModelError: the module has an adapter, which packed modules are part of, or is not in memory.
    """
    require_no_adapter(model)
    require_weights(model)
    packed = [module for module in model.modules() if isinstance(module, PackedModule)]
    owners = {module: module.tied_to or module for module in packed}
    weights = {owner: nn.Parameter(owner.weight.clone()) for owner in dict.fromkeys(owners.values())}
    for module, owner in owners.items():
        unpack_module(module, weights[owner])
    as_float_model(model)
    forget_config(model)
    return model


def _first_packed(model: nn.Module) -> PackedModule:
    return next(module for module in model.modules() if isinstance(module, PackedModule))


def packed_modules(model: nn.Module) -> dict[str, PackedModule]:
    """Every packed module by the name of its weight's plan, tied ones included."""
    return {
        stack_name(name) if isinstance(module, PoTStack) else name: module
        for name, module in model.named_modules()
        if isinstance(module, PackedModule)
    }
