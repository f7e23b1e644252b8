"""Other people's 4-bit products on a GPU, for ``gpu/kernels.py``: each one whose package is there, or why it is not."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]
Made = tuple[int, Call]  # bytes of the weight, and the product
GROUP = 64


def torch_int4(x: Tensor, shape: tuple[int, int]) -> Made:
    """torch's own: asymmetric int4, bfloat16."""
    if x.dtype != torch.bfloat16:
        raise RuntimeError("computes in bfloat16 only")
    codes = torch.randint(0, 256, (shape[0], shape[1] // 2), dtype=torch.uint8, device=x.device)
    weight = torch._convert_weight_to_int4pack(codes, 8)
    scales = torch.ones(shape[1] // GROUP, shape[0], 2, dtype=x.dtype, device=x.device)
    return codes.nbytes + scales.nbytes, lambda: torch._weight_int4pack_mm(x, weight, GROUP, scales)


def bitsandbytes(x: Tensor, shape: tuple[int, int]) -> Made:
    """NF4, float32 scales of blocks of 64."""
    package: Any = importlib.import_module("bitsandbytes")
    dense = torch.randn(shape, dtype=x.dtype, device=x.device)
    packed, state = package.functional.quantize_4bit(dense, blocksize=GROUP, quant_type="nf4")
    return packed.nbytes + state.absmax.nbytes, lambda: package.matmul_4bit(x, packed.t(), quant_state=state)


def gemlite(x: Tensor, shape: tuple[int, int]) -> Made:
    """Asymmetric int4 in Triton; it tunes itself at the first call, which takes its time."""
    package: Any = importlib.import_module("gemlite")
    kind = package.DType.FP16 if x.dtype == torch.float16 else package.DType.BF16
    linear = package.GemLiteLinear(
        4, group_size=GROUP, in_features=shape[1], out_features=shape[0], input_dtype=kind, output_dtype=kind
    )
    codes = torch.randint(0, 16, shape, dtype=torch.uint8, device=x.device)
    scales = torch.ones(shape[0] * shape[1] // GROUP, 1, dtype=x.dtype, device=x.device)
    linear.pack(codes, scales, scales * 8, None)
    return codes.nbytes // 2 + 2 * scales.nbytes, lambda: linear(x)


def marlin(x: Tensor, shape: tuple[int, int]) -> Made:
    """Symmetric int4, groups of 128, float16."""
    if x.dtype != torch.float16:
        raise RuntimeError("computes in float16 only")
    package: Any = importlib.import_module("marlin")
    weight = torch.randint(-(2**31), 2**31 - 1, (shape[1] // 16, shape[0] * 2), dtype=torch.int32, device=x.device)
    scales = torch.ones(shape[1] // 128, shape[0], dtype=x.dtype, device=x.device)
    out = torch.empty(len(x), shape[0], dtype=x.dtype, device=x.device)
    workspace = torch.zeros(shape[0] // 128 * 16, dtype=torch.int32, device=x.device)
    return weight.nbytes + scales.nbytes, lambda: package.mul(x, weight, out, scales, workspace)


PEERS: dict[str, Callable[[Tensor, tuple[int, int]], Made]] = {
    "torch int4": torch_int4,
    "bitsandbytes nf4": bitsandbytes,
    "gemlite int4": gemlite,
    "marlin int4": marlin,
}


def peers(x: Tensor, shape: tuple[int, int]) -> Iterator[tuple[str, Made | str]]:
    """Every peer's product of ``x`` with a random weight of ``shape``, or why there is none."""
    for name, make in PEERS.items():
        try:
            bytes_, call = make(x, shape)
            call()
        except Exception as error:  # whatever somebody else's package does
            yield name, f"{type(error).__name__}: {error}"
        else:
            yield name, (bytes_, call)
