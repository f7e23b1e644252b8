"""Trellis codes: the search against every path there is, decoding against a state machine, two searches alike."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from potq.errors import ConfigError
from potq.numerics import trellis
from potq.numerics.functional import codebook, level_table
from potq.numerics.grid import Grid
from potq.numerics.packing import pack, unpack
from potq.numerics.scheme import TRELLIS, QuantScheme
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.rtn import rtn

NAMES = list(TRELLIS)


def _levels(name: str) -> Tensor:
    return codebook(QuantScheme(name), torch.device("cpu"))[0]


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    """Short ones, so that sums are exact in any order."""
    return torch.randint(-64, 65, shape, generator=torch.Generator().manual_seed(seed)) / 16


def _state_machine(stored: list[int], grid: Grid) -> list[int]:
    """Levels of a row, one after another: the state is the path's last three bits, and the sorted levels go round."""
    ascending, state, levels = sorted(grid.levels), 0, []
    for code in stored:
        register = state << 1 | code & 1
        bits = [register >> steps & 1 for steps in range(4)]
        levels.append(ascending[4 * (code >> 1) + 2 * (bits[0] ^ bits[2] ^ bits[3]) + bits[1]])
        state = register & 7
    return levels


@pytest.mark.parametrize("name", NAMES)
def test_decoding_is_the_state_machine(name: str) -> None:
    scheme, columns = QuantScheme(name), 77
    stored = torch.randint(
        0, 2**scheme.code_bits, (9, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    expected = torch.tensor([_state_machine(row, scheme.grid) for row in stored.tolist()])
    assert torch.equal(torch.tensor(scheme.grid.levels)[trellis.expand(stored, scheme.grid).int()], expected)
    weight = QuantizedWeight(pack(stored, scheme.code_bits), torch.ones(9, 2).half(), (9, columns), scheme)
    assert torch.equal(weight.dequantize() * scheme.grid.reference, expected.float())
    assert torch.equal(trellis.contract(weight.codes(), scheme.grid), stored)
    wide = trellis.expanded(weight.packed, scheme.grid, columns)
    assert torch.equal(unpack(wide, scheme.grid.bits, columns), weight.codes())


@pytest.mark.parametrize("name", NAMES)
def test_the_path_is_the_best_of_all(name: str) -> None:
    scheme, columns = QuantScheme(name), 5 if QuantScheme(name).code_bits == 2 else 3
    every = torch.tensor(list(itertools.product(range(2**scheme.code_bits), repeat=columns)), dtype=torch.uint8)
    values = level_table(scheme.grid, every.device)[trellis.expand(every, scheme.grid).int()]
    weight, step = _numbers(40, columns), _numbers(40, columns, seed=1).abs()
    index, cost = trellis.best_path(weight, step, _levels(name))
    expected = (weight[:, None] - step[:, None] * values).square().sum(2).amin(1)
    assert torch.equal(cost, expected)
    assert torch.equal((weight - step * _levels(name)[index.int()]).square().sum(1), expected)
    codes = trellis.path_codes(weight, step, _levels(name), scheme.grid)
    assert torch.equal(trellis.expand(trellis.contract(codes, scheme.grid), scheme.grid), codes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (16, 64), (37, 130)])
def test_library_and_torch_find_the_same(name: str, shape: tuple[int, int]) -> None:
    weight, step = torch.randn(shape, generator=torch.Generator().manual_seed(2)), _numbers(*shape, seed=3).abs()
    step[:, : shape[1] // 3] = 0  # a group without a scale: any path is as good
    index, cost = trellis.best_path(weight, step, _levels(name))
    expected = trellis._best_path(weight, step, _levels(name))
    assert torch.equal(index, expected[0])
    assert torch.equal(cost, expected[1])
    assert torch.equal(trellis.best_cost(weight, step, _levels(name)), cost)


def test_states_follow_from_what_is_stored() -> None:
    scheme = QuantScheme("pot2t")
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(4))
    index, _ = trellis.best_path(weight, torch.ones_like(weight), _levels("pot2t"))
    path = trellis.contract(trellis._codes(scheme.grid, weight.device)[index.int()], scheme.grid) & 1
    for row, bits in enumerate(path.tolist()):
        state = 0
        for column, bit in enumerate(bits):
            assert int(trellis.state_before(index, column)[row]) == state
            state = (2 * state + bit) % trellis.STATES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_on_a_path_stays(name: str) -> None:
    weight = torch.randn(12, 150, generator=torch.Generator().manual_seed(5))
    weight[3] = 0
    weight[4, :64] = 0
    found = rtn(weight, QuantScheme(name))
    found.validate("weight")
    again = QuantizedWeight.from_scale(found.dequantize(), found.scale, QuantScheme(name))
    assert torch.equal(again.dequantize(), found.dequantize())
    assert not found.dequantize()[3].any()
    some = found.rows(torch.tensor([7, 2]))
    assert torch.equal(some.dequantize(), found.dequantize()[[7, 2]])


def test_a_trellis_takes_a_bit_less() -> None:
    assert [QuantScheme(name).bits_per_weight(64, 256) for name in ("pot2t", "int2t", "apot3t")] == [2.25, 2.25, 3.25]
    assert [QuantScheme(name).name for name in NAMES] == ["pot2t-g64", "int2t-g64", "apot3t-g64"]
    assert QuantScheme(grid=Grid(bits=4, magnitudes=(1, 2, 4, 8, 16, 32, 64, 128)), trellis=True).name == "custom3t-g64"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_dtype": "e8m0"}, "needs scale_dtype='float16'"),
        ({"group_size": "tensor"}, "needs groups within a row"),
        ({"grid": "pot2"}, "a grid of 3 bits or more"),
        ({"grid": "pot4"}, "every level of it once"),  # two codes of 0
    ],
)
def test_what_has_no_trellis(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantScheme("pot2t", **fields)
