"""Put packed modules in the place of a model's weights, and float modules back in theirs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from potq.nn.packed import PackedModule, pack_module
from potq.nn.packed_model import as_float_model, packed_modules
from potq.nn.plan import WeightPlan
from potq.nn.refusals import require_no_adapter, require_weights
from potq.nn.stacked import PoTStack, pack_stack, unpack_stack
from potq.nn.weights import as_weight, find_stack
from potq.numerics.tensor import QuantizedWeight

_TIES = {"_tied_weights_keys", "all_tied_weights_keys"}  # transformers' notes of tied parameters


def install(model: nn.Module, target: WeightPlan, quantized: QuantizedWeight) -> None:
    """Put ``quantized`` in place of ``target``'s weight and of the weights tied to it."""
    if target.experts:
        pack_stack(find_stack(model, target.name), quantized, target.name)
        return
    owner = pack_module(model.get_submodule(target.name), quantized, target.name)
    _replace(model, target.name, owner)
    for name in target.tied:
        _replace(model, name, pack_module(model.get_submodule(name), owner, name))
    if target.tied:
        _forget_ties(model)


def meta_model(model: nn.Module) -> nn.Module:
    """The float model of the same config, which has one of transformers', without weights: on the meta device."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    kind: Any = type(model)
    with torch.device("meta"):
        made: nn.Module = kind(config)
    return made


@torch.no_grad()
def unpack(model: nn.Module, dtype: torch.dtype) -> None:
    """Put float modules, those that the architecture has, in place of packed ones.

    Raises:
        ModelError: the model has an adapter, which packed modules are part of, or is not in memory.
    """
    require_no_adapter(model)
    require_weights(model)
    weights: dict[PackedModule, nn.Parameter] = {}
    float_model = meta_model(model)
    for name, module in packed_modules(model).items():
        if isinstance(module, PoTStack):
            parent, _, key = name.rpartition(".")
            unpack_stack(model.get_submodule(parent), key, dtype)
            continue
        plain, owner = float_model.get_submodule(name), module.tied_to or module
        if owner not in weights:
            weights[owner] = nn.Parameter(as_weight(plain, owner.quantized.dequantize()).to(dtype).contiguous())
        plain.weight = weights[owner]
        if getattr(plain, "bias", None) is not None:
            plain.bias = module.bias
        plain._buffers |= {key: value for key, value in module._buffers.items() if not key.startswith("weight_")}
        _replace(model, name, plain.train(module.training))
    for name, module in model.named_modules():
        for attribute in _TIES & vars(module).keys():
            setattr(module, attribute, getattr(float_model.get_submodule(name), attribute))
    as_float_model(model)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    old = model.get_submodule(name)
    if old is module:  # it changed its class
        return
    for parent in model.modules():  # two may have the same child
        for child, found in parent._modules.items():
            if found is old:
                parent._modules[child] = module


def _forget_ties(model: nn.Module) -> None:
    """Drop transformers' tie bookkeeping for packed weights: the tie is now in the modules, not in a parameter."""
    for submodule in model.modules():
        for attribute in _TIES:
            ties = getattr(submodule, attribute, None)
            if isinstance(ties, dict):
                kept = {key: value for key, value in ties.items() if not _names_packed(submodule, key)}
                setattr(submodule, attribute, kept)


def _names_packed(model: nn.Module, key: str) -> bool:
    name, _, parameter = key.rpartition(".")
    try:
        return parameter == "weight" and isinstance(model.get_submodule(name), PackedModule)
    except AttributeError:
        return False
