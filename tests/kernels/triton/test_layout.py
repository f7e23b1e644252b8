"""The GPU layout: the canonical codes and back, and where the bits stand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potq.errors import ConfigError
from potq.kernels.triton.layout import arrange
from potq.numerics.packing import pack


def _codes(rows: int, columns: int, bits: int) -> Tensor:
    generator = torch.Generator().manual_seed(bits)
    return torch.randint(2**bits, (rows, columns), generator=generator, dtype=torch.uint8)


def _places(bits: int, column: int) -> list[tuple[int, int, int]]:
    """Plane, word and bit of each bit of a column's code, lowest first: the drawing in the module's docstring."""
    octet, pair, half = column // 8, column % 8 // 2, column % 2 * 16
    if bits == 8:
        return [(0, column // 2, half // 2 + bit) for bit in range(8)]
    in_word = {2: 2, 3: 2, 4: 1}[bits]
    word, base = octet // in_word, octet % in_word * 8 + half
    low = [(0, word, base + pair * (bits - 1) + bit) for bit in range(bits - 1)]
    top = (1, octet // 4, octet % 4 * 4 + pair + half) if bits == 3 else (0, word, base + 4 * (bits - 1) + pair)
    return [*low, top]


@pytest.mark.parametrize("columns", [8, 32, 104, 256])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_code_stands_where_it_is_drawn(bits: int, columns: int) -> None:
    codes = _codes(3, columns, bits)
    words = arrange(pack(codes, bits), bits, columns)
    for column in range(columns):
        found = [(words[plane][:, word].int() >> bit) & 1 for plane, word, bit in _places(bits, column)]
        assert torch.equal(sum(value << bit for bit, value in enumerate(found)), codes[:, column].int())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_takes_no_more_bits_than_the_checkpoint(bits: int) -> None:
    packed = pack(_codes(3, 64, bits), bits)
    words = arrange(packed, bits, 64)
    assert sum({tensor.data_ptr(): tensor.nbytes for tensor in words}.values()) == packed.nbytes


@pytest.mark.parametrize(("bits", "columns"), [(6, 64), (5, 64), (4, 44)])
def test_other_weights_are_refused(bits: int, columns: int) -> None:
    with pytest.raises(ConfigError, match="2, 3, 4 and 8 bits and multiples of 8 columns"):
        arrange(pack(_codes(2, columns, bits), bits), bits, columns)
