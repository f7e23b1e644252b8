"""The dtype of products: half precision where it is fast, and on processors for which torch has no compiled products of it.

torch multiplies bfloat16 and float16 matrices on every processor. Where its library (oneDNN) does not, as with AVX2 alone,
that takes several times as long as in float32 where rows are multiplied with rows of the weight, and far longer elsewhere:
on every way back, and in GPT-2's layers. So :func:`fast_products` converts, multiplies in float32, and rounds the result, as
the library does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_FEW = 16  # rows: up to here torch reads a weight once, as it lies, and its conversion would take longer
_CONVERTED = 1 << 22  # weights of a matrix that are float32 at a time
_SUPPORT = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
_HERE = ("cpu", "meta")  # what is read in parts is on the meta device until it is read
_ATEN = torch.ops.aten
_WHOLE = (
    *(_ATEN.bmm.default, _ATEN.baddbmm.default),
    *(_ATEN.convolution.default, _ATEN.convolution_backward.default),
)


def is_slow(dtype: torch.dtype) -> bool:
    """Whether torch has no compiled products of ``dtype`` for this processor.

    Example:
        >>> is_slow(torch.float32)
        False
    """
    if dtype not in _SUPPORT:
        return False
    supported = getattr(torch.ops.mkldnn, _SUPPORT[dtype], None)  # missing where torch is built without oneDNN
    return supported is None or not supported()


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 products where they are fast, as calibration can do with; elsewhere nothing changes."""
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def dtypes_here(model: nn.Module) -> set[torch.dtype]:
    """Of the parameters and buffers that are on the CPU."""
    return {tensor.dtype for tensor in chain(model.parameters(), model.buffers()) if tensor.device.type in _HERE}


@contextmanager
def fast_products(dtypes: Iterable[torch.dtype]) -> Iterator[None]:
    """Whatever is computed on the CPU meanwhile, products of those of ``dtypes`` that are slow take float32's way.

    Results have the dtype that they had; memory holds some megabytes more, whatever the size of a weight.

    Example:
        >>> x = torch.ones(32, 4, dtype=torch.bfloat16)
        >>> with fast_products([torch.bfloat16]):
        ...     (x @ x.t()).dtype
        torch.bfloat16
    """
    slow = {dtype for dtype in dtypes if is_slow(dtype)}
    if not slow:
        yield
        return
    with _Float32Products(slow):
        yield


class _Float32Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's metaclass hook
    """Below autograd, so that gradients take the same way, and what is kept for them stays as small as it was."""

    def __init__(self, slow: set[torch.dtype]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's, without types
        self._slow = slow

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if types:  # tensors of other kinds, spread over processes, say, which compute in their own way
            return func(*args, **kwargs)
        if func is _ATEN.mm.default and self._serves(*args):
            return _product(*args)
        if func is _ATEN.addmm.default and self._serves(*args[1:]):
            bias, first, second = args
            return _product(first, second, bias, **kwargs)
        if func in _WHOLE and args[0].dtype in self._slow and args[0].device.type == "cpu":
            dtype = args[0].dtype
            found = func(*tree_map_only(Tensor, Tensor.float, args), **kwargs)
            return tree_map_only(Tensor, lambda tensor: tensor.to(dtype), found)
        return func(*args, **kwargs)

    def _serves(self, first: Tensor, second: Tensor) -> bool:
        if first.dtype not in self._slow or first.device.type != "cpu":
            return False
        return len(first) > _FEW or second.stride(0) != 1


def _product(first: Tensor, second: Tensor, bias: Tensor | None = None, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * bias + alpha * first @ second``, of shapes ``(m, k)`` and ``(k, n)``, some columns at a time."""
    result = first.new_empty(len(first), second.shape[1])
    added = None if bias is None else bias.expand_as(result)
    wide, step = first.float(), max(1, _CONVERTED // max(1, len(second)))
    for start in range(0, second.shape[1], step):
        columns = slice(start, start + step)
        part = second[:, columns].float()
        if added is None:
            result[:, columns] = wide @ part
        else:
            result[:, columns] = torch.addmm(added[:, columns].float(), wide, part, beta=beta, alpha=alpha)
    return result
