"""The packed layout: bytes written by hand, round trips, padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potq.numerics.packing import pack, padding_is_zero, unpack
from potq.numerics.scheme import packed_row_bytes, plane_widths

BITS = [2, 3, 4, 5, 6, 7, 8]


def _codes(rows: int, columns: int, bits: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.mark.parametrize("bits", BITS)
@given(rows=st.integers(1, 4), columns=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_unpack_inverts_pack(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = _codes(rows, columns, bits, seed)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_row_bytes(columns, bits))
    unpacked = unpack(packed, bits, columns)
    assert unpacked.dtype == torch.uint8
    assert torch.equal(unpacked, codes)
    assert padding_is_zero(packed, bits, columns)


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (2, [1, 2, 3, 0, 2], [0b00_11_10_01, 0b00_00_00_10]),
        (3, [0b101, 0b010, 0b111, 0b000, 0b100], [0b00_11_10_01, 0b00, 0b10101]),
        (4, [0xA, 0x3, 0xF], [0x3A, 0x0F]),
        (5, [0x1A, 0x03, 0x1F], [0x3A, 0x0F, 0b101]),
        (6, [0b10_1010, 0b01_0011, 0b11_1111], [0x3A, 0x0F, 0b110, 0b101]),
        (7, [0b101_1010, 0b010_0011], [0x3A, 0b01, 0b10, 0b01]),
        (8, [0, 1, 128, 255], [0, 1, 128, 255]),
    ],
)
def test_bytes_of_a_row_by_hand(bits: int, codes: list[int], expected: list[int]) -> None:
    assert pack(torch.tensor([codes], dtype=torch.uint8), bits).tolist() == [expected]


def test_long_three_bit_row_puts_all_low_bits_before_all_signs() -> None:
    codes = torch.tensor([[0b100] * 9 + [0b011] * 8], dtype=torch.uint8)
    low = [0, 0, 0b11111100, 0b11111111, 0b11]
    signs = [0b11111111, 0b1, 0]
    assert pack(codes, 3).tolist() == [low + signs]


@pytest.mark.parametrize("bits", BITS)
def test_rows_are_packed_independently(bits: int) -> None:
    codes = _codes(3, 13, bits)
    rows = [pack(row[None], bits) for row in codes]
    assert torch.equal(pack(codes, bits), torch.cat(rows))


@pytest.mark.parametrize("bits", BITS)
def test_pack_takes_a_strided_view_and_leaves_it_alone(bits: int) -> None:
    codes = _codes(13, 5, bits)
    before = codes.clone()
    assert torch.equal(pack(codes.T, bits), pack(codes.T.contiguous(), bits))
    assert torch.equal(codes, before)


def _padding_bits(bits: int, columns: int) -> list[tuple[int, int]]:
    """(byte, bit) of every padding bit of a row."""
    found, start = [], 0
    for width in plane_widths(bits):
        size = -(-columns * width // 8)
        found += [(start + bit // 8, bit % 8) for bit in range(columns * width, size * 8)]
        start += size
    return found


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", range(1, 17))
def test_padding_is_written_zero_and_every_dirty_bit_is_found(bits: int, columns: int) -> None:
    packed = pack(torch.full((2, columns), 2**bits - 1, dtype=torch.uint8), bits)
    assert padding_is_zero(packed, bits, columns)
    padding = _padding_bits(bits, columns)
    assert 8 * packed.shape[1] - bits * columns == len(padding)
    for byte, bit in padding:
        dirty = packed.clone()
        dirty[1, byte] |= 1 << bit
        assert not padding_is_zero(dirty, bits, columns), (byte, bit)
        assert torch.equal(unpack(dirty, bits, columns), unpack(packed, bits, columns))
