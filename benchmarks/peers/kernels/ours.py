"""potq's own kernels: the copies as one array of products, given to ``potq_linear`` in one native call.

Codes are random and scales are those of a normal weight; a shift costs the same whatever it shifts by.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.peers.kernels.peer import Case, Work
from benchmarks.peers.packages import THREADS, UnavailableError
from potq import native as lib
from potq.kernels.cpu.backend import format_of
from potq.numerics.packing import pack
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight

INT8, FLOAT = 0, 1  # potq_arithmetic


@dataclass(frozen=True)
class Ours:
    preset: str
    group: str = "ours"
    arithmetic: int = INT8
    tolerance: float = 2e-2
    scheme: QuantScheme = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", QuantScheme(self.preset, group_size=64))

    @property
    def name(self) -> str:
        return self.preset if self.arithmetic == INT8 else f"{self.preset} (float)"

    def bits(self, case: Case) -> float:
        return self.scheme.bits_per_weight(case.rows, case.columns)

    def prepare(self, case: Case, copies: int, seed: int) -> Work:
        reason = lib.missing()
        if reason:
            raise UnavailableError(reason)
        pattern = self._pattern(case, seed)
        weight_format = format_of(self.scheme, (case.rows, case.columns))
        tiles = _copies(_tiles(weight_format, case.repeat(pattern.packed), case.repeat(pattern.scale)), copies)
        x, y = case.input(seed), torch.empty(case.m, case.rows)
        products = b"".join(self._product(weight_format, tile, x, y) for tile in tiles)
        kernels = lib.library()

        def run() -> None:
            if kernels.potq_linear(products, copies, THREADS):
                raise MemoryError("potq_linear found no memory for the activations")

        return Work(
            run=run,
            output=lambda: y,
            weight=lambda: case.repeat(pattern.dequantize()),
            note=lib.isa(),
            keep=(weight_format, tiles, x, y),  # products hold bare addresses
        )

    def _pattern(self, case: Case, seed: int) -> QuantizedWeight:
        weight, bits = case.pattern(seed), self.scheme.code_bits
        used = torch.tensor(sorted(set(range(2**bits)) - self.scheme.grid.unused_codes), dtype=torch.uint8)
        codes = used[torch.randint(len(used), weight.shape, generator=torch.Generator().manual_seed(seed))]
        groups = self.scheme.scale_shape(*weight.shape)[1]
        scale = torch.full((len(weight), groups), float(weight.std())) * (1 + torch.rand(len(weight), groups))
        return QuantizedWeight(pack(codes, bits), scale.half(), (len(weight), case.columns), self.scheme)

    def _product(self, weight_format: lib.Format, tiles: Tensor, x: Tensor, y: Tensor) -> bytes:
        addresses = ctypes.addressof(weight_format), tiles.data_ptr(), x.data_ptr(), 0, y.data_ptr()
        return lib.PRODUCT.pack(*addresses, len(x), 0, self.arithmetic, lib.usable_isas()[lib.isa()])


def _tiles(weight_format: lib.Format, packed: Tensor, scale: Tensor) -> Tensor:
    tiles = torch.empty(lib.library().potq_tiles_bytes(weight_format), dtype=torch.uint8)
    lib.library().potq_pack_all(weight_format, packed.data_ptr(), scale.data_ptr(), tiles.data_ptr(), THREADS)
    return tiles


def _copies(tiles: Tensor, copies: int) -> list[Tensor]:
    """Copies in memory of the kind that ``potq_pack_all`` writes to."""
    made = [torch.empty_like(tiles) for _ in range(copies)]
    for copy in made:
        lib.library().potq_advise_huge_pages(copy.data_ptr(), copy.nbytes)
        copy.copy_(tiles)
    return made


PEERS = (
    Ours("pot4"),
    Ours("apot4"),
    Ours("pot3"),
    Ours("pot2"),
    Ours("int8"),
    Ours("pot4", group="ours float", arithmetic=FLOAT, tolerance=1e-4),
)
