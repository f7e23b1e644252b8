"""Compile every kernel for the capability in the first argument; test_compile.py runs it outside the interpreter."""

from __future__ import annotations

import sys

import torch

from potq.kernels.triton import dequantize, product
from potq.kernels.triton.launch import Launch
from potq.kernels.triton.weight import TYPES, GpuWeight
from potq.kernels.weight import PackedWeight
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.rtn import rtn

SCHEMES = {PRESETS["pot3"]: torch.float16, PRESETS["apot4"]: torch.bfloat16, PRESETS["int8"]: torch.float16}
SCHEMES |= {PRESETS["pot2"]: torch.bfloat16, PRESETS["pot4"]: torch.bfloat16}
SCHEMES[QuantScheme("pot4", group_size=16, scale_dtype="e8m0", row_scale=True)] = torch.bfloat16


def launches(scheme: QuantScheme, dtype: torch.dtype) -> list[Launch]:
    """Dequantization to both types, and products of one row and of several in one: 64 of them take Hopper's own product."""
    weight = rtn(torch.ones(64, 512), scheme, method="absmax")
    arranged = GpuWeight.of(PackedWeight.of(weight))
    found = [dequantize.launch(arranged, torch.empty(64, 512, dtype=each), weight.row_scale) for each in TYPES]
    for m in (1, 16, 64):
        x, out = torch.empty(m, 512, dtype=dtype), torch.empty(m, 64, dtype=dtype)
        found += product.launches(x, arranged, out[0], weight.row_scale, out)
    return [*found, product.gemm(torch.empty(64, 512, dtype=dtype), arranged, product.GemmBlocks(rows=128, columns=32))[0]]


for scheme, dtype in SCHEMES.items():
    for launch in launches(scheme, dtype):
        compiled = launch.compile(int(sys.argv[1]))
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared == 0 or launch.kernel is not dequantize._powers_kernel
