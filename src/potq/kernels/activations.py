"""The inputs of products: in torch, what the kernels' int8 arithmetic makes of them (docs/kernels.md).

Per row and block of at most 64 inputs ``q = rint(x 127 / amax)``; a block whose largest value stands out takes 16 bits,
``254 q + r`` in place of ``q``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_OUTLIER = 645.0  # csrc/kernels/product.h: a block whose integers' mean square is less is rounded finely
_TINY = 2.0**-120  # blocks below count as zero


def round_activations(input: Tensor, group: int) -> Tensor:
    """``input`` ``(..., columns)`` as the kernels see it, in its dtype; the gradient passes unchanged.

    Args:
        group: inputs that share a weight scale.
    """
    units, step = in_units(input.detach(), group)
    q = units.round()
    q = torch.where(is_fine(units), q + ((units - q) * 254).round() / 254, q)
    rounded = (q * step).flatten(-2)[..., : input.shape[-1]].to(input.dtype)
    return input + (rounded - input).detach()


def in_units(input: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Blocks ``(..., blocks, block)`` of inputs, in units of their steps ``(..., blocks, 1)``; float32, the last padded."""
    columns = input.shape[-1]
    block = 64 if group >= columns else next((block for block in (64, 48, 32, 16) if group % block == 0), group)
    x = pad(input.float(), (0, -columns % block)).unflatten(-1, (-1, block))
    largest = x.abs().amax(-1, keepdim=True)
    return x * torch.where(largest >= _TINY, 127 / largest, 0.0), largest / 127


def is_fine(units: Tensor) -> Tensor:
    """Which blocks take 16 bits, ``(..., blocks, 1)``."""
    return units.round().square().mean(-1, keepdim=True) < _OUTLIER
