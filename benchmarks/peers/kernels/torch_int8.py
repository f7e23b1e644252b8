"""torch dynamic int8 (the operator in ``torch.ao.nn.quantized.dynamic.Linear``): int8 per output, and per input tensor.

In a scripted loop, as in torch_float.py. Every engine this torch has is a contestant of its own; goals compare with the
fastest.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.peers.kernels.peer import Case, Work
from benchmarks.peers.packages import UnavailableError

ENGINES = ("fbgemm", "onednn")  # "x86" chooses between these two


if TYPE_CHECKING:
    PackedWeight = Any
else:
    PackedWeight = torch.classes.quantized.LinearPackedParamsBase  # TorchScript's name


@torch.jit.script
def linear_each(x: Tensor, weights: list[PackedWeight], last: list[Tensor]) -> Tensor:
    for weight in weights:
        last[0] = torch.ops.quantized.linear_dynamic(x, weight, False)
    return last[0]


@dataclass(frozen=True)
class TorchInt8:
    engine: str
    group: str = "int8"
    tolerance: float = 4e-2

    @property
    def name(self) -> str:
        return f"torch dynamic int8 ({self.engine})"

    def bits(self, case: Case) -> float:
        return 8 + 64 / case.columns  # a float32 scale and an int32 zero point per output

    def prepare(self, case: Case, copies: int, seed: int) -> Work:
        if self.engine not in torch.backends.quantized.supported_engines:
            raise UnavailableError(f"this torch has no {self.engine}")
        x, weight = case.input(seed), _quantized(case, seed)
        packed = self._pack(weight, copies)
        return Work(
            run=lambda: linear_each(x, packed, [x]),
            output=lambda: linear_each(x, packed[-1:], [x]),
            weight=weight.dequantize,
        )

    def _pack(self, weight: Tensor, copies: int) -> list[Any]:
        # the engine is chosen when the weight is packed, and the packed weight keeps it
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = self.engine
        try:
            return [torch.ops.quantized.linear_prepack(weight, None) for _ in range(copies)]
        finally:
            torch.backends.quantized.engine = before


def _quantized(case: Case, seed: int) -> Tensor:
    pattern = case.pattern(seed)
    scales = case.repeat(pattern.abs().amax(1) / 127).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized dtypes are deprecated; torch has no other int8 linear
        return torch.quantize_per_channel(
            case.repeat(pattern), scales, torch.zeros(case.rows, dtype=torch.int64), 0, torch.qint8
        )


PEERS = tuple(TorchInt8(engine) for engine in ENGINES)
