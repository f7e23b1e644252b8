"""torch's own linear in float32 and bfloat16.

torch has no call for many products, so a scripted loop makes them: its cost is about a microsecond per product, and what the
allocator takes for every output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers.kernels.peer import Case, Work, distinct


@torch.jit.script
def linear_each(x: Tensor, weights: list[Tensor], last: list[Tensor]) -> Tensor:
    # every product is stored, or TorchScript unrolls the loop and drops all but one in eight as dead code
    for weight in weights:
        last[0] = torch.nn.functional.linear(x, weight)
    return last[0]


@dataclass(frozen=True)
class TorchFloat:
    name: str
    group: str
    dtype: torch.dtype
    tolerance: float

    def bits(self, case: Case) -> float:
        return self.dtype.itemsize * 8

    def prepare(self, case: Case, copies: int, seed: int) -> Work:
        x, weight = case.input(seed).to(self.dtype), case.repeat(case.pattern(seed)).to(self.dtype)
        weights = distinct(weight, copies)
        return Work(
            run=lambda: linear_each(x, weights, [x]),
            output=lambda: linear_each(x, weights[-1:], [x]).float(),
            weight=weight.float,
        )


PEERS = (
    TorchFloat("torch fp32", "fp32", torch.float32, 1e-4),
    TorchFloat("torch bf16", "bf16", torch.bfloat16, 2e-2),
)
