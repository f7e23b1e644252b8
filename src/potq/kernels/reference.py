"""The reference backend: products with a packed weight in plain torch, on any device.

Math: ``y = x W^T + b`` with ``W`` dequantized exactly in float32 (see :mod:`potq.numerics.functional`), then cast to ``x``'s
dtype. A plane of 2, 4 or 8 bits is decoded a byte at a time, through a table of the levels in each of the 256 bytes;
decoding code by code would read the table two or four times as often. Widths with 1-bit planes are unpacked first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potq.numerics.functional import decode_scale
from potq.numerics.packing import unpack
from potq.numerics.trellis import expanded

if TYPE_CHECKING:
    from potq.config import Activations
    from potq.kernels.weight import PackedWeight
    from potq.numerics.scheme import QuantScheme

NAME = "reference"


def dequantize(packed: Tensor, scale: Tensor, levels: Tensor, columns: int, group: int) -> Tensor:
    """Float32 ``(rows, columns)``.

    Args:
        packed: uint8 ``(rows, row bytes)``.
        scale: float32 ``(rows, groups)``, or one row that all rows share.
        levels: float32 ``(2**bits,)``: ``level / reference`` of every code.
        group: columns per scale.
    """
    weight = _decode(packed, levels, columns)
    full = columns - columns % group
    count = full // group
    scale = scale.expand(len(weight), -1)
    body = (weight[:, :full].unflatten(1, (count, group)) * scale[:, :count, None]).flatten(1)
    return torch.cat([body, weight[:, full:] * scale[:, count:]], dim=1) if full < columns else body


def _decode(packed: Tensor, levels: Tensor, columns: int) -> Tensor:
    bits = len(levels).bit_length() - 1
    if bits not in (2, 4, 8):
        codes = unpack(packed, bits, columns)
        return torch.index_select(levels, 0, codes.flatten().int()).view(codes.shape)
    every_byte = torch.arange(256, device=packed.device).to(torch.uint8)[:, None]
    table = levels[unpack(every_byte, bits, 8 // bits).int()]
    rows = torch.index_select(table, 0, packed.flatten().int())
    return rows.view(len(packed), packed.shape[1] * (8 // bits))[:, :columns]


def supports(scheme: QuantScheme, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> str | None:
    """Always None: the reference computes with every weight, everywhere."""
    return None


def matrix(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The whole weight ``(rows, columns)``, dequantized exactly, then in ``dtype``."""
    packed, scale, scheme, columns, row_scale = weight
    grid = scheme.grid  # the table is made anew: one cached while torch traces would be a fake tensor
    levels = torch.tensor([level / grid.reference for level in grid.levels], dtype=torch.float32, device=packed.device)
    if scheme.trellis:
        packed = expanded(packed, grid, columns)
    return dequantize(packed, decode_scale(scale, row_scale), levels, columns, scheme.group(columns)).to(dtype)


def linear(input: Tensor, weight: PackedWeight, bias: Tensor | None, activations: Activations) -> Tensor:
    """``input W^T + bias``, activations never rounded."""
    return torch.nn.functional.linear(input, matrix(weight, input.dtype), bias)


def embedding(ids: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Rows ``ids`` of the weight in ``dtype``, exact before the cast."""
    return matrix(weight.rows(ids.flatten()), dtype).view(*ids.shape, weight.columns)
