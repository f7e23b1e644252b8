"""What compressed-tensors holds, and how: MXFP4, and integers that share a float16 scale in a group.

``mxfp4-pack-quantized``: ``M.weight_packed``, uint8 ``(out, in / 2)``, two E2M1 codes a byte, the first in the low half, and
``M.weight_scale``, uint8 ``(out, in / 32)``, the exponent + 127 of what the code 1.0 is worth. It is unpacked to bfloat16,
whatever the config says.

``pack-quantized``: ``M.weight_packed``, int32 ``(out, in * bits / 32)`` of codes ``level + 2**(bits - 1)``, the first in the
low bits, ``M.weight_scale``, float16 ``(out, in / group)``, and ``M.weight_shape``. It is unpacked to float16, and vLLM's
kernels compute in it. There a level times a scale is exact where the level is a power of two; others (3, 5, ...) would be
rounded, so they have no place here. The widths and groups are those that vLLM's kernels know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from potq.errors import ExportError
from potq.export.blocks import BlockType, encode
from potq.numerics.grid import E2M1
from potq.numerics.packing import pack
from potq.numerics.tensor import QuantizedWeight

_WIDTHS, _GROUPS = (4, 8), (128, 64, 32)
MXFP4 = BlockType("mxfp4-pack-quantized", 32, E2M1.levels, "e8m0", 4.25)


def _integers(bits: int, group: int) -> BlockType:
    half = 1 << (bits - 1)
    levels = tuple(level if level == 0 or abs(level).bit_count() == 1 else None for level in range(-half, half))
    return BlockType(f"int{bits}/{group}", group, levels, "float16", bits + 16 / group)


COMPRESSED_TYPES = (MXFP4, *(_integers(bits, group) for bits in _WIDTHS for group in _GROUPS))


def format_of(kind: BlockType) -> str:
    """The format's word for files of such tensors."""
    return MXFP4.name if kind is MXFP4 else "pack-quantized"


def dtype_of(kind: BlockType) -> torch.dtype:
    """What such weights are unpacked to."""
    return torch.bfloat16 if kind is MXFP4 else torch.float16


def arguments(kind: BlockType) -> dict[str, Any]:
    """What the config says of such weights."""
    shared = {"strategy": "group", "group_size": kind.weights, "symmetric": True, "dynamic": False}
    if kind is MXFP4:
        return {"num_bits": 4, "type": "float", **shared, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    return {"num_bits": kind.width, "type": "int", **shared}


def stored(name: str, weight: QuantizedWeight, kind: BlockType) -> dict[str, Tensor]:
    """The tensors of one linear, which fits ``kind``.

    Raises:
        ExportError: values beyond float16's range; names the linear.
    """
    blocks = list(encode(weight, kind))
    codes = torch.cat([pack(part.codes.flatten(1), kind.width) for part in blocks])
    scale = torch.cat([part.scales for part in blocks])
    if kind is MXFP4:
        return {"weight_packed": codes, "weight_scale": scale}
    values = weight.dequantize()
    if not torch.equal(values.half().float(), values):
        raise ExportError(f"{name} has values that float16 does not hold; leave it out (ignore)")
    return {
        "weight_packed": codes.view(torch.int32),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
