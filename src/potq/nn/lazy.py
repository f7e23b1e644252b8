"""A tensor that is made when something computes with it; what it is like is known before.

transformers' forwards often ask a weight for nothing but its dtype (Gemma's embedding does, for every token), and a packed
or rounded weight takes a pass over the whole table to make. Functions are caught above autograd (``__torch_function__``), so
the tensor that is made may have a gradient; ``__torch_dispatch__`` is for what comes past that, from C++.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from potq.errors import ModelError

_PROPERTIES = (Tensor.dtype, Tensor.device, Tensor.shape, Tensor.ndim, Tensor.layout, Tensor.is_meta, Tensor.is_cuda)
_METHODS = (Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.element_size)
_KNOWN = {*(getattr(entry, "__get__") for entry in _PROPERTIES), *_METHODS}  # noqa: B009  # mypy knows no slot
_SET_DATA = getattr(Tensor.data, "__set__")  # noqa: B009


class LazyTensor(Tensor):
    """``make()``, of this shape, dtype and device, called anew by every function that reads it."""

    _make: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, make: Callable[[], Tensor]
    ) -> LazyTensor:
        lazy = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        lazy._make = make
        return lazy

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _KNOWN:
            return super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]  # torch's stub
        if function == _SET_DATA and isinstance(args[0], LazyTensor):  # as peft does to merge an adapter; it would be lost
            raise ModelError("a packed or rounded weight is read-only; model.dequantize() gives a model that can be changed")
        return function(*_made(args), **_made(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub forgets the function
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*_made(args), **_made(kwargs or {}))


def _made(values: Any) -> Any:
    return tree_map_only(LazyTensor, lambda lazy: lazy._make(), values)
