"""torch ``_weight_int4pack_mm_for_cpu``: 4-bit weights with bfloat16 scales and zero points, bfloat16 activations.

In a scripted loop, as in torch_float.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers.kernels.peer import Case, Work, distinct
from benchmarks.peers.packages import UnavailableError


@torch.jit.script
def product_each(x: Tensor, weights: list[Tensor], scales: list[Tensor], group: int, last: list[Tensor]) -> Tensor:
    for weight, scale in zip(weights, scales):  # noqa: B905  # TorchScript knows no strict=
        last[0] = torch._weight_int4pack_mm_for_cpu(x, weight, group, scale)
    return last[0]


@dataclass(frozen=True)
class TorchInt4:
    block: int
    group: str = "4-bit"
    tolerance: float = 2e-2

    @property
    def name(self) -> str:
        return f"torch int4pack g{self.block}"

    def bits(self, case: Case) -> float:
        return 4 + 32 / self.block

    def prepare(self, case: Case, copies: int, seed: int) -> Work:
        if case.columns % self.block:
            raise UnavailableError(f"columns must be a multiple of {self.block}")
        if case.rows % 16:
            raise UnavailableError("rows must be a multiple of 16")
        x, groups = case.input(seed).bfloat16(), case.pattern(seed).unflatten(1, (-1, self.block))
        scale = (groups.abs().amax(2) / 7).bfloat16()
        codes = (groups / scale.float()[..., None]).round().add(8).clamp(0, 15)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(case.repeat(codes.flatten(1).int()), 1)
        parameters = case.repeat(torch.stack([scale, torch.zeros_like(scale)], dim=2)).transpose(0, 1).contiguous()
        weights, scales = distinct(packed, copies), distinct(parameters, copies)
        return Work(
            run=lambda: product_each(x, weights, scales, self.block, [x]),
            output=lambda: product_each(x, weights[-1:], scales[-1:], self.block, [x]).float(),
            weight=lambda: case.repeat(((codes - 8) * scale.float()[..., None]).flatten(1)),
        )


PEERS = (TorchInt4(64), TorchInt4(128))
