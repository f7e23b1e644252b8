"""The GPU layout: the canonical codes and back, and where the bits stand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potq.errors import ConfigError
from potq.kernels.triton.layout import arrange, pairs_per_word, restore
from potq.packing import pack


def _codes(rows: int, columns: int, bits: int) -> Tensor:
    generator = torch.Generator().manual_seed(bits)
    return torch.randint(2**bits, (rows, columns), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("columns", [32, 96, 160, 512])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_there_and_back(bits: int, columns: int) -> None:
    packed = pack(_codes(5, columns, bits), bits)
    words = arrange(packed, bits, columns)
    assert words.low.shape == (5, columns // (2 * pairs_per_word(bits)))
    assert torch.equal(restore(words, bits), packed)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_takes_no_more_bits_than_the_checkpoint(bits: int) -> None:
    packed = pack(_codes(3, 64, bits), bits)
    words = arrange(packed, bits, 64)
    assert sum({tensor.data_ptr(): tensor.nbytes for tensor in words}.values()) == packed.nbytes


@pytest.mark.parametrize(
    ("bits", "column", "low", "top"),
    [(2, 6, (0, 3), (0, 11)), (2, 31, (1, 23), (1, 31)), (3, 6, (0, 6), (0, 3)), (3, 31, (1, 30), (0, 31))]
    + [(4, 6, (0, 9), (0, 15)), (4, 31, (3, 25), (3, 31))],
)
def test_where_a_column_stands(bits: int, column: int, low: tuple[int, int], top: tuple[int, int]) -> None:
    for code, found in ((1, (0, *low)), (2 ** (bits - 1), (1, *top))):
        codes = torch.zeros(1, 32, dtype=torch.uint8)
        codes[0, column] = code
        plane, word, bit = found
        words = arrange(pack(codes, bits), bits, 32)[plane]
        assert words[0, word].item() & 0xFFFFFFFF == 1 << bit
        assert words.count_nonzero() == 1


@pytest.mark.parametrize(("bits", "columns"), [(8, 64), (5, 64), (4, 48)])
def test_other_weights_are_refused(bits: int, columns: int) -> None:
    with pytest.raises(ConfigError, match="2 to 4 bits and multiples of 32 columns"):
        arrange(pack(_codes(2, columns, bits), bits), bits, columns)
