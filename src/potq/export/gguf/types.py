"""ggml's block types: their levels, and their bytes. The layouts are those of ``block_*`` in ggml's ``ggml-common.h``.

ggml's own quantizers choose scales anew and would lose exactness; here codes and scales are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from potq.export.blocks import Blocks, BlockType
from potq.numerics.grid import E2M1
from potq.numerics.scheme import PRESETS


class GgmlType(NamedTuple):
    """A block type, and what turns codes (uint8 ``(rows, blocks, weights)``) and scale bytes into a block's bytes."""

    block: BlockType
    layout: Callable[[Tensor, Tensor], list[Tensor]]


def block_bytes(blocks: Blocks, kind: GgmlType) -> Tensor:
    """The rows as ggml stores them: uint8 ``(rows, bytes)``."""
    scale = blocks.scales.unsqueeze(2).contiguous().view(torch.uint8)
    return torch.cat(kind.layout(blocks.codes, scale), dim=2).flatten(1)


def _nibbles(codes: Tensor, scale: Tensor) -> list[Tensor]:
    """Scale, then a byte for weights i and i + 16."""
    return [scale, _halves(codes)]


def _nibbles_and_fifth_bits(codes: Tensor, scale: Tensor) -> list[Tensor]:
    """Scale, the 32 fifth bits in four bytes, lowest first, then the lower four as in Q4_0."""
    places = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8)
    fifth = ((codes >> 4).unflatten(2, (4, 8)) * places).sum(dim=3, dtype=torch.uint8)
    return [scale, fifth, _halves(codes & 15)]


def _bytes(codes: Tensor, scale: Tensor) -> list[Tensor]:
    return [scale, codes]


def _crumbs(codes: Tensor, scale: Tensor) -> list[Tensor]:
    """Two runs of 32 bytes, byte i of a run holding its weights i, i + 32, i + 64, i + 96; then the scale."""
    parts = codes.unflatten(2, (2, 4, 32))
    packed = parts[..., 0, :] | parts[..., 1, :] << 2 | parts[..., 2, :] << 4 | parts[..., 3, :] << 6
    return [packed.flatten(2), scale]


def _halves(codes: Tensor) -> Tensor:
    low, high = codes.chunk(2, dim=2)
    return low | high << 4


def _offset(bits: int, zero: int) -> tuple[int, ...]:
    return tuple(range(-zero, 2**bits - zero))


_SIGNED_BYTES = tuple(range(128)) + tuple(range(-128, 0))

GGML_TYPES: dict[str, GgmlType] = {
    kind.block.name: kind
    for kind in (
        GgmlType(BlockType("TQ2_0", 256, (-1, 0, 1), "float16", 2.0625), _crumbs),
        GgmlType(BlockType("MXFP4", 32, E2M1.levels, "e8m0", 4.25), _nibbles),
        GgmlType(BlockType("Q4_0", 32, _offset(4, 8), "float16", 4.5), _nibbles),
        GgmlType(BlockType("IQ4_NL", 32, PRESETS["iq4nl"].grid.levels, "float16", 4.5), _nibbles),
        GgmlType(BlockType("Q5_0", 32, _offset(5, 16), "float16", 5.5), _nibbles_and_fifth_bits),
        GgmlType(BlockType("Q8_0", 32, _SIGNED_BYTES, "float16", 8.5), _bytes),
    )
}
"""By name, the smallest first. TQ2_0's fourth code, the level 2, is in no engine's contract and not used."""
