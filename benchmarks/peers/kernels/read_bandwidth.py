"""The roof: how fast two threads read memory, measured as a contestant in the same rounds as the others.

Two of torch's reductions over one buffer of the footprint that all contestants have; the faster one counts. A C++ loop,
with or without prefetching, reads no faster. The footprint must be the same: a cyclic read of twice the last-level cache
still finds a part of it there (caches do not replace strictly in order), and seems to pass the memory's bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers.kernels.peer import Case, Work
from potq import native as lib


@dataclass(frozen=True)
class ReadBandwidth:
    """The buffer is as large as ``copies`` of the weight in 16 bits."""

    method: str
    group: str = "bandwidth"
    tolerance: float = 1e-3

    @property
    def name(self) -> str:
        return f"memory read ({self.method})"

    def bits(self, case: Case) -> float:
        return 16

    def prepare(self, case: Case, copies: int, seed: int) -> Work:
        floats = torch.empty(copies * case.rows * case.columns // 2 // 4 * 4)  # two weights in one float
        if not lib.missing():  # the roof of our own kernels needs the same pages as theirs
            lib.library().potq_advise_huge_pages(floats.data_ptr(), floats.nbytes)
        floats.fill_(1)
        integers, halves = floats.view(torch.int64), floats.tensor_split(2)
        read = integers.sum if self.method == "sum" else lambda: torch.dot(*halves)
        nothing = torch.zeros(case.m, case.rows)
        return Work(run=read, output=lambda: nothing, weight=lambda: _no_weight(case))


def _no_weight(case: Case) -> Tensor:
    return torch.zeros(case.rows, case.columns)


PEERS = (ReadBandwidth("sum"), ReadBandwidth("dot"))
