"""The registered ops ``potq::linear`` and ``potq::embedding``: the route of ``torch.compile``, of export, and of gradients.

They take the tensors of a checkpoint as they are (codes and scales of :mod:`potq.numerics.packing`) and the scheme as JSON,
so a graph that holds them runs on whatever backend the machine has. In eager mode without gradients the modules call the
backend directly: a registered op costs some 15 us a call.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from potq.config import Activations
from potq.kernels import reference
from potq.kernels.registry import BACKENDS, choose
from potq.kernels.weight import PackedWeight
from potq.numerics.scheme import QuantScheme


@lru_cache(maxsize=1024)
def _scheme(text: str) -> QuantScheme:
    return QuantScheme.model_validate_json(text)


@torch.library.custom_op("potq::linear", mutates_args=())
def linear(
    input: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    scheme: str,
    activations: str,
    row_scale: Tensor | None = None,
) -> Tensor:
    """``input (..., in) W^T + bias -> (..., out)`` in ``input``'s dtype.

    Args:
        packed, scale, row_scale: the weight ``(out, in)`` as a checkpoint stores it.
        scheme: JSON of the :class:`~potq.numerics.scheme.QuantScheme`.
        activations: "int8" (rounded per row and block of at most 64 inputs, where the backend can) or "float".
    """
    weight = PackedWeight(packed, scale, _scheme(scheme), input.shape[-1], row_scale)
    chosen = choose(weight.scheme, weight.shape, packed.device, input.dtype)
    kept = cast(Activations, activations)  # a schema knows strings only
    return BACKENDS[chosen.backend].linear(input, weight, bias, kept)


@linear.register_fake
def _(
    input: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    scheme: str,
    activations: str,
    row_scale: Tensor | None = None,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], packed.shape[0]))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, packed, scale, bias, scheme, _, row_scale = inputs
    ctx.save_for_backward(packed, scale, row_scale)
    ctx.scheme, ctx.columns, ctx.has_bias = scheme, input.shape[-1], bias is not None


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, Tensor | None, None, None, None]:
    """Gradients of the exact product: rounding of the activations is passed straight through."""
    packed, scale, row_scale = ctx.saved_tensors
    weight = PackedWeight(packed, scale, _scheme(ctx.scheme), ctx.columns, row_scale)
    bias = upstream.reshape(-1, upstream.shape[-1]).sum(0) if ctx.has_bias else None
    return upstream @ reference.matrix(weight, upstream.dtype), None, None, bias, None, None, None


linear.register_autograd(_backward, setup_context=_save_for_backward)


@torch.library.custom_op("potq::embedding", mutates_args=())
def embedding(
    ids: Tensor,
    packed: Tensor,
    scale: Tensor,
    scheme: str,
    columns: int,
    dtype: torch.dtype,
    row_scale: Tensor | None = None,
) -> Tensor:
    """Rows ``ids`` of the weight ``(rows, columns)``, dequantized exactly: ``(*ids.shape, columns)`` in ``dtype``.

    Raises:
        IndexError: an id outside the table.
    """
    weight = PackedWeight(packed, scale, _scheme(scheme), columns, row_scale)
    chosen = choose(weight.scheme, weight.shape, packed.device, dtype)
    return BACKENDS[chosen.backend].embedding(ids, weight, dtype)


@embedding.register_fake
def _(
    ids: Tensor,
    packed: Tensor,
    scale: Tensor,
    scheme: str,
    columns: int,
    dtype: torch.dtype,
    row_scale: Tensor | None = None,
) -> Tensor:
    return packed.new_empty((*ids.shape, columns), dtype=dtype)
