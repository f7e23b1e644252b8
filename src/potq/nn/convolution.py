"""Convolutions as matrices: of a kernel ``(out, in / groups, *size)``, each output channel is a row of weights.

Strides, padding, dilation and groups change nothing of that. Groups do change which inputs meet a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.nn.functional import pad, unfold

_PATCHES = 1 << 24  # numbers at a time: patches hold an input as often as the kernel has places

Convolution = nn.Conv1d | nn.Conv2d


def is_convolution(module: nn.Module) -> TypeGuard[Convolution]:
    return isinstance(module, (nn.Conv1d, nn.Conv2d))


def is_grouped(module: nn.Module) -> bool:
    """Whether the rows of its matrix meet different inputs, so that no one second moment is theirs."""
    return is_convolution(module) and module.groups > 1


def kernel_shape(module: Convolution) -> tuple[int, ...]:
    return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)


def reading(module: nn.Module) -> tuple[Any, ...]:
    """How it reads its input: layers that read the same tensor alike are multiplied with the same rows."""
    if not is_convolution(module):
        return ()
    return (module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode)


def rows(module: nn.Module, input: Tensor) -> Iterator[Tensor]:
    """What the matrix of a linear, or of a convolution without groups, is multiplied with, a part of the rows at a time."""
    if not is_convolution(module):
        yield input.reshape(-1, input.shape[-1])
        return
    if input.ndim == len(module.kernel_size) + 1:  # without a batch
        input = input[None]
    each = max(1, input[0].numel() * math.prod(module.kernel_size)) if len(input) else 1
    for part in input.split(max(1, _PATCHES // each)):
        yield patches(module, part)


def patches(module: Convolution, input: Tensor) -> Tensor:
    """What the matrix of ``module``, which has no groups, is multiplied with for a batch: ``(places, in * size)``."""
    sides: Any = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    if any(sides):
        input = pad(input, sides, mode=mode)
    ones = (1,) * (2 - len(module.kernel_size))  # a signal is an image of one row
    if ones:
        input = input.unsqueeze(-2)
    size, dilation, stride = ((*ones, *each) for each in (module.kernel_size, module.dilation, module.stride))
    return unfold(input, size, dilation, 0, stride).transpose(1, 2).flatten(0, 1)


def convolve(module: Convolution, input: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """What ``module`` puts out with ``matrix`` as its kernel."""
    result: Tensor = module._conv_forward(input, matrix.view(kernel_shape(module)), bias)
    return result
