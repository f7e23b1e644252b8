"""What the benchmarks compare with: that their weights are what is counted and written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import gguf
import pytest
import torch

from benchmarks.common.random_llama import Sizes
from benchmarks.peers.kernels.onnx_runtime import OnnxRuntime, packed
from benchmarks.peers.kernels.peer import Case


@pytest.mark.parametrize(("width", "expected"), [(4, [0x21, 0xF0]), (2, [0b00_11_01_10])])
def test_codes_are_packed_from_the_lowest_bits(width: int, expected: list[int]) -> None:
    codes = torch.tensor([1, 2, 0, 15] if width == 4 else [2, 1, 3, 0])
    assert packed(codes, width).tolist() == expected


def test_bits_of_onnx_runtime_count_scales_and_padding() -> None:
    assert OnnxRuntime(2, 32).bits(Case(8, 64, 1)) == 2 + 32 / 32
    assert OnnxRuntime(2, 128).bits(Case(8, 192, 1)) == 2 * (2 * 128 + 32) / 192
    assert (OnnxRuntime(2, 32).group, OnnxRuntime(4, 32).group) == ("2-bit", "4-bit")


@pytest.mark.parametrize("vocabulary", [1024, 5000])
def test_a_random_model_has_a_tokenizer_of_its_own_tokens(vocabulary: int) -> None:
    letters = [chr(33 + i) for i in range(60)]
    pairs = [(one, other) for one in letters for other in letters]
    read = {
        "tokens": letters + [one + other for one, other in pairs],
        "token_type": [1] * (len(letters) + len(pairs)),
        "merges": [f"{one} {other}" for one, other in pairs],
    }
    sizes = Sizes(width=64, inner=96, heads=4, key_heads=2, blocks=3, vocabulary=vocabulary)
    fields = {f"tokenizer.ggml.{name}": SimpleNamespace(contents=lambda value=value: value) for name, value in read.items()}
    found = sizes.metadata(cast(gguf.GGUFReader, SimpleNamespace(fields=fields)))
    tokens = set(found["tokenizer.ggml.tokens"])
    assert len(tokens) == len(found["tokenizer.ggml.token_type"]) == vocabulary
    assert all({*merge.split(" "), merge.replace(" ", "")} <= tokens for merge in found["tokenizer.ggml.merges"])
    assert len(found["tokenizer.ggml.merges"]) == min(vocabulary, len(read["tokens"])) - len(letters)
    assert (found["llama.block_count"], found["llama.rope.dimension_count"]) == (3, 16)
