"""Bytes of ggml's blocks, read by ``gguf``'s own dequantize."""

from __future__ import annotations

import gguf
import pytest
import torch

from potq.export.blocks import Blocks
from potq.export.gguf.types import GGML_TYPES, GgmlType, block_bytes
from potq.numerics.scheme import PRESETS

KINDS = pytest.mark.parametrize("kind", GGML_TYPES.values(), ids=lambda kind: kind.block.name)


@KINDS
def test_every_code_at_every_place(kind: GgmlType) -> None:
    block, levels = kind.block, torch.tensor(kind.block.levels)
    count = len(levels)
    places = torch.arange(block.weights)
    codes = ((places + torch.arange(count).unsqueeze(1)) % count).to(torch.uint8)  # row r: code r first
    scales = torch.tensor([0.0123, -3.5], dtype=torch.float16) if block.scale == "float16" else torch.tensor([0, 131])
    stored = scales if block.scale == "float16" else scales.to(torch.uint8)
    blocks = Blocks(codes.unsqueeze(1).repeat(1, 2, 1), stored.expand(count, 2))
    data = block_bytes(blocks, kind).numpy()
    values = scales.double() if block.scale == "float16" else 2.0 ** (scales.double() - 128)
    expected = levels[codes.int()].double().unsqueeze(1) * values.view(1, 2, 1)
    found = torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[block.name]).copy())
    assert torch.equal(found.double(), expected.flatten(1))


@KINDS
def test_sizes_are_ggmls(kind: GgmlType) -> None:
    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.block.name]]
    assert (kind.block.weights, kind.block.bits_per_weight) == (weights, 8 * size / weights)


def test_levels_are_ggmls() -> None:
    assert GGML_TYPES["MXFP4"].block.levels == gguf.quants.MXFP4.kvalues
    assert GGML_TYPES["IQ4_NL"].block.levels == gguf.quants.IQ4_NL.kvalues == PRESETS["iq4nl"].grid.levels


def test_the_smallest_stands_first() -> None:
    sizes = [kind.block.bits_per_weight for kind in GGML_TYPES.values()]
    assert sizes == sorted(sizes)
