"""A tensor that is made when something computes with it; what it is like is known before.

transformers' forwards often ask a weight for nothing but its dtype (Gemma's embedding does, for every token), and a packed
or rounded weight takes a pass over the whole table to make. Functions are caught above autograd (``__torch_function__``), so
the tensor that is made may have a gradient; ``__torch_dispatch__`` is for what comes past that, from C++.

What is made is thrown away afterwards. So whatever writes into it, or into a view of it, or would train it is refused.
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
_SET_DATA, _SET_GRAD, _SET_REQUIRES_GRAD = (
    getattr(entry, "__set__")  # noqa: B009
    for entry in (Tensor.data, Tensor.grad, Tensor.requires_grad)
)
_IS_LEAF = getattr(Tensor.is_leaf, "__get__")  # noqa: B009  # optimizers and peft ask this of what they are to train
_WISHES = {_SET_DATA, _SET_GRAD, _SET_REQUIRES_GRAD, _IS_LEAF, Tensor.requires_grad_}  # forgotten with what is made


class LazyTensor(Tensor):
    """``make()``, of this shape, dtype and device, called anew by every function that reads it; errors call it ``name``."""

    _make: Callable[[], Tensor]
    _name: str

    @staticmethod
    def __new__(
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, make: Callable[[], Tensor], name: str
    ) -> LazyTensor:
        lazy = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        lazy._make, lazy._name = make, name
        return lazy

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _KNOWN:
            return super().__torch_function__(function, types, args, kwargs)  # type: ignore[no-untyped-call]  # torch's stub
        if function in _WISHES and isinstance(args[0], LazyTensor):
            _refuse_wish(function, args[0]._name, *args[1:], *kwargs.values())
            return args[0]
        made: list[tuple[LazyTensor, Tensor]] = []
        result = _call(function, args, kwargs, made)
        return tree_map_only(Tensor, lambda tensor: _guarded(tensor, made), result)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub forgets the function
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _call(function, args, kwargs or {}, [])


def read_only(name: str) -> ModelError:
    """The error for a write that would be lost."""
    return ModelError(
        f"{name} is read-only, the write would be lost; model.dequantize() gives a model that can be changed, and that an "
        "adapter can be merged into"
    )


def no_training(name: str) -> ModelError:
    """The error for training that would be lost."""
    return ModelError(
        f"{name} does not train; train an adapter beside it (LoRA), or with potq.qat the float model that "
        "model.dequantize() gives"
    )


def _refuse_wish(function: Any, name: str, value: Any = True) -> None:
    """Refuse it, unless it is to have no gradient."""
    if function == _SET_DATA:  # as peft does to merge an adapter
        raise read_only(name)
    if function == _IS_LEAF or not (value is None or value is False):
        raise no_training(name)


def _call(function: Any, args: Any, kwargs: Any, made: list[tuple[LazyTensor, Tensor]]) -> Any:
    """``function`` of the tensors themselves, which are noted in ``made``; one that wrote into them is an error."""

    def make(lazy: LazyTensor) -> Tensor:
        made.append((lazy, lazy._make()))
        return made[-1][1]

    args, kwargs = tree_map_only(LazyTensor, make, (args, kwargs))
    versions = [None if tensor.is_inference() else tensor._version for _, tensor in made]
    result = function(*args, **kwargs)
    for (lazy, tensor), version in zip(made, versions, strict=True):
        if version is not None and tensor._version != version:
            raise read_only(lazy._name)
    return result


def _guarded(result: Tensor, made: list[tuple[LazyTensor, Tensor]]) -> Tensor:
    """``result``; a view of what was made is as read-only as that."""
    for lazy, tensor in made:
        if result.layout == torch.strided and _storage(result) == _storage(tensor):
            return LazyTensor(tuple(result.shape), result.dtype, result.device, lambda: result, lazy._name)
    return result


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
