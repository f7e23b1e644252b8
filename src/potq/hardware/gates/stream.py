"""Products of a real layer, in the order in which a unit would be given them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from potq.errors import ConfigError, ModelError
from potq.hardware.gates.measure import Stream
from potq.numerics.scheme import QuantScheme
from potq.ptq.algorithms.rtn import rtn


def inputs_of(model: Any, name: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The weight ``(out, in)`` of a linear, and its inputs ``(tokens, in)`` while the model reads ``tokens``, 1-D.

    Raises:
        ModelError: the model has no linear of that name.
    """
    module = dict(model.named_modules()).get(name)
    if not isinstance(module, nn.Linear):
        linears = [found for found, each in model.named_modules() if isinstance(each, nn.Linear)]
        raise ModelError(f"the model has no linear {name!r}; it has {linears[0]} and {len(linears) - 1} more")
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().flatten(0, -2).float()))
    try:
        with torch.no_grad():
            model(tokens[None], use_cache=False)
    finally:
        handle.remove()
    return module.weight.detach().float(), seen[0]


def in_integers(inputs: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor]:
    """``inputs`` ``(..., columns)`` as integers ``(..., groups, group)`` in float32, and their steps ``(..., groups, 1)``.

    The largest of each token and group becomes ``2**(bits - 1) - 1``.

    Raises:
        ConfigError: groups do not divide the columns.
    """
    if inputs.shape[-1] % group:
        raise ConfigError(f"groups of {group} do not divide {inputs.shape[-1]} columns; choose another group size")
    blocks = inputs.float().unflatten(-1, (-1, group))
    largest = blocks.abs().amax(-1, keepdim=True)
    most = 2 ** (bits - 1) - 1
    units: Tensor = blocks * torch.where(largest > 0, most / largest, 0.0)
    return units.round(), largest / most


def layer_stream(
    weight: Tensor, inputs: Tensor, scheme: QuantScheme, *, activation_bits: int = 8, dots: int = 64, seed: int = 0
) -> Stream:
    """Whole dot products of a layer, of rows and tokens drawn at random; the same ones for the same ``seed``.

    Args:
        weight: ``(out, in)``, rounded to the scheme's levels.
        inputs: ``(tokens, in)``, rounded to integers for each token and group.

    Raises:
        ConfigError: the scheme's groups do not divide the columns.
    """
    group = scheme.group(weight.shape[1])
    chosen = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(weight), (dots,), generator=chosen)
    tokens = torch.randint(len(inputs), (dots,), generator=chosen)
    codes = rtn(weight[rows].contiguous(), scheme).codes()
    activations = in_integers(inputs[tokens], group, activation_bits)[0].int()
    return Stream(tuple(codes.flatten().tolist()), tuple(activations.flatten().tolist()))
