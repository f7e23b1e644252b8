"""Compile every kernel for the capability in the first argument; test_compile.py runs it outside the interpreter."""

from __future__ import annotations

import sys

import torch

from potq.algorithms.rtn import rtn
from potq.kernels.triton import dequantize, product
from potq.kernels.triton.launch import Launch
from potq.kernels.triton.weight import TYPES, GpuWeight
from potq.scheme import PRESETS, QuantScheme

SCHEMES = [PRESETS[name] for name in ("pot2", "pot3", "pot4", "int3", "apot4", "int8")]
SCHEMES.append(QuantScheme("pot4", group_size=16, scale_dtype="e8m0", row_scale=True))


def launches(scheme: QuantScheme) -> list[Launch]:
    """Dequantization to every type, and products of one row and of several."""
    weight = rtn(torch.ones(64, 512), scheme, method="absmax")
    arranged = GpuWeight.of(weight.packed, weight.scale, scheme, 512)
    found = [dequantize.launch(arranged, torch.empty(64, 512, dtype=dtype), weight.row_scale) for dtype in TYPES]
    for dtype in TYPES:
        for m in (1, 16):
            x, out = torch.empty(m, 512, dtype=dtype), torch.empty(m, 64, dtype=dtype)
            found += product.launches(x, arranged, out[0], weight.row_scale, out)
    return found


for scheme in SCHEMES:
    for launch in launches(scheme):
        assert launch.compile(int(sys.argv[1])).asm["cubin"]
