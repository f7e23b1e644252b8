"""What ONNX Runtime's operators MatMulNBits and GatherBlockQuantized hold: ``(q - zero_point) * scale``.

MatMulNBits computes with 2, 4 and 8 bits, in blocks of 16 to 256 weights. The zero point is the one that is meant where
none is given, ``2**(bits - 1)``: no preset becomes smaller by another integer. A scale is a float32 as the inputs are, which
holds every scale of ours divided by a power of two. Both operators read codes ``(rows, blocks, bytes)``, low bits first, so
an embedding and the head that is tied to it share them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from potq.export.blocks import BlockType, encode
from potq.numerics.packing import pack
from potq.numerics.tensor import QuantizedWeight

DOMAIN = "com.microsoft"
ACCURACY, FLOAT32_INPUTS, INT8_INPUTS = "accuracy_level", 1, 4
"""MatMulNBits' attribute: what it may round its inputs to."""

_WIDTHS = (2, 4, 8)
_BLOCKS = (256, 128, 64, 32, 16)
_SCALE_BITS = 32


def _nbits(bits: int, block: int) -> BlockType:
    half = 1 << (bits - 1)
    return BlockType(
        name=f"{bits}-bit/{block}",
        weights=block,
        levels=tuple(range(-half, half)),
        scale="float32",
        bits_per_weight=bits + _SCALE_BITS / block,
        padded=True,
    )


NBITS_TYPES = tuple(_nbits(bits, block) for bits in _WIDTHS for block in _BLOCKS)
"""Every width with every block."""


def matmul_attributes(kind: BlockType, shape: tuple[int, int]) -> dict[str, Any]:
    """What MatMulNBits is told of a weight ``(out, in)``: also to compute in float32, not to round its inputs to int8."""
    return {"N": shape[0], "K": shape[1], "bits": kind.width, "block_size": kind.weights, ACCURACY: FLOAT32_INPUTS}


def gather_attributes(kind: BlockType) -> dict[str, Any]:
    """What GatherBlockQuantized is told of codes ``(rows, blocks, bytes)`` and scales ``(rows, blocks, 1)``."""
    return {"bits": kind.width, "block_size": kind.weights, "gather_axis": 0, "quantize_axis": 2}


def operands(weight: QuantizedWeight, kind: BlockType) -> tuple[Tensor, Tensor]:
    """A weight ``(out, in)`` as codes, uint8 ``(out, blocks, bytes of a block)``, and scales, float32 ``(out, blocks)``.

    Raises:
        ExportError: a scale is beyond the range of float32's normal numbers.
    """
    parts = list(encode(weight, kind))
    codes = torch.cat([pack(part.codes.flatten(1), kind.width) for part in parts])
    scales = torch.cat([part.scales for part in parts])
    return codes.unflatten(1, (scales.shape[1], -1)), scales
