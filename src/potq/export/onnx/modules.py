"""Packed modules as ONNX Runtime's operators, for the time of a trace."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from potq.errors import ExportError
from potq.export.blocks import BlockType, misfit
from potq.export.onnx.types import DOMAIN, gather_attributes, matmul_attributes, operands
from potq.export.targets import ONNX
from potq.nn.packed import PackedModule, PoTEmbedding, PoTLinear
from potq.nn.packed_model import packed_modules


class NBitsModule(PackedModule):
    """Codes and scales of :func:`~potq.export.onnx.types.operands` as buffers, or the owner's."""

    weight_codes: Tensor
    weight_scales: Tensor
    _kind: tuple[BlockType]

    def hold_operands(self, codes: Tensor, scales: Tensor, kind: BlockType) -> None:
        """Take them in place of the packed weight."""
        for key in self.quantized.tensors():
            del self._buffers[f"weight_{key}"]
        self.register_buffer("weight_codes", codes)
        self.register_buffer("weight_scales", scales)
        self._kind = (kind,)

    def operands(self) -> tuple[Tensor, Tensor, BlockType]:
        """Codes, scales and their type."""
        holder = cast(NBitsModule, self.tied_to or self)
        return holder.weight_codes, holder.weight_scales, holder._kind[0]

    @property  # type: ignore[misc]  # the one it overrides has a setter, which refuses
    def weight(self) -> Tensor:
        """Shape and dtype alone: what a forward around ours (Gemma's) looks at."""
        return torch.empty(self._shape, dtype=self.compute_dtype, device="meta")


class NBitsLinear(NBitsModule, PoTLinear):  # type: ignore[override]  # its weight is read-only
    """Traces as a MatMulNBits; computes nothing itself."""

    def forward(self, input: Tensor) -> Tensor:
        codes, scales, kind = self.operands()
        bias = () if self.bias is None else (None, None, self.bias)  # behind zero points and a retired input
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::MatMulNBits",
            [input, codes, scales, *bias],
            matmul_attributes(kind, self._shape),
            dtype=input.dtype,
            shape=[*input.shape[:-1], self._shape[0]],
            version=1,
        )


class NBitsEmbedding(NBitsModule, PoTEmbedding):  # type: ignore[override]  # its weight is read-only
    """Traces as a GatherBlockQuantized of whole blocks; computes nothing itself."""

    def forward(self, input: Tensor) -> Tensor:
        codes, scales, kind = self.operands()
        blocks = torch.onnx.ops.symbolic(
            f"{DOMAIN}::GatherBlockQuantized",
            [codes, input, scales.unsqueeze(2)],
            gather_attributes(kind),
            dtype=torch.float32,
            shape=[*input.shape, scales.shape[1], kind.weights],
            version=1,
        )
        return blocks.flatten(-2)[..., : self._shape[1]]


def to_nbits(model: nn.Module) -> dict[str, BlockType]:
    """Turn the packed modules of ``model`` into such modules, in place; the types by the names of the weights' owners.

    Raises:
        ExportError: a weight that no type holds.
    """
    kinds: dict[str, BlockType] = {}
    for name, module in packed_modules(model).items():
        found = _operands(module, name) if module.tied_to is None else None
        module.__class__ = _class_of(type(module))
        if found is not None:
            cast(NBitsModule, module).hold_operands(*found)
            kinds[name] = found[2]
    return kinds


def _operands(module: PackedModule, name: str) -> tuple[Tensor, Tensor, BlockType]:
    weight = module.quantized
    kind = ONNX.form(weight.scheme, weight.shape[1]) or ONNX.types[-1]
    if (why := misfit(weight, kind)) is not None:
        raise ExportError(f"{name} does not fit MatMulNBits: {why}; leave it out (ignore)")
    return *operands(weight, kind), kind


def _class_of(kind: type[PackedModule]) -> type[PackedModule]:
    """A subclass with a forward of its own (Gemma's scaled embedding) keeps it, as in :mod:`potq.nn.packed`."""
    base: type[PackedModule] = NBitsEmbedding if issubclass(kind, PoTEmbedding) else NBitsLinear
    return base if kind in (PoTLinear, PoTEmbedding) else type(kind.__name__, (kind.__bases__[0], base), {})
