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

if TYPE_CHECKING:
    from potq.kernels.activations import Activations
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


def rows(
    ids: Tensor | None,
    packed: Tensor,
    scale: Tensor,
    scheme: QuantScheme,
    columns: int,
    dtype: torch.dtype,
    row_scale: Tensor | None = None,
) -> Tensor:
    """Dequantized rows (1-D ``ids``; None for all of them) in ``dtype``."""
    if ids is not None:
        packed = packed.index_select(0, ids)  # unlike packed[ids], it refuses negative indices
        scale = scale.index_select(0, ids) if len(scale) > 1 else scale
        row_scale = None if row_scale is None else row_scale.index_select(0, ids)
    grid = scheme.grid  # the table is made anew: one cached while torch traces would be a fake tensor
    levels = torch.tensor([level / grid.reference for level in grid.levels], dtype=torch.float32, device=packed.device)
    return dequantize(packed, decode_scale(scale, row_scale), levels, columns, scheme.group(columns)).to(dtype)


def linear(
    input: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    scheme: QuantScheme,
    activations: Activations,
    row_scale: Tensor | None = None,
) -> Tensor:
    """``input W^T + bias``, activations never rounded."""
    weight = rows(None, packed, scale, scheme, input.shape[-1], input.dtype, row_scale)
    return torch.nn.functional.linear(input, weight, bias)


def embedding(
    ids: Tensor,
    packed: Tensor,
    scale: Tensor,
    scheme: QuantScheme,
    columns: int,
    dtype: torch.dtype,
    row_scale: Tensor | None = None,
) -> Tensor:
    """Rows ``ids`` of the weight in ``dtype``, exact before the cast."""
    return rows(ids.flatten(), packed, scale, scheme, columns, dtype, row_scale).view(*ids.shape, columns)
