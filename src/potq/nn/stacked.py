"""Modules of experts whose stacks are modules themselves: a packed one, or a linear for each expert.

transformers' experts index a stack, ``self.gate_up_proj[expert]``, and multiply with what they get. So the module changes
its class in place. The parameter's name then gives a lazy tensor, and a product with one of its matrices calls that
expert's linear. Whatever else is done with the tensor makes it, which is right and slow. Nothing here knows an architecture.

Only the experts' own loop takes one matrix at a time. So the loop runs, whatever ``experts_implementation`` says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as functional_linear

from potq.nn.experts import PREFIX, Stack, as_stack
from potq.nn.lazy import LazyTensor, read_only
from potq.nn.packed import PackedModule, pack_module
from potq.numerics.tensor import QuantizedWeight

_FLOAT_CLASS = "_potq_float_experts"
_MATMUL = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}
_TRANSPOSE = {getattr(Tensor.T, "__get__"), getattr(Tensor.mT, "__get__"), Tensor.t}  # noqa: B009  # mypy knows no slot
_BMM = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}


class LazyMatrix(LazyTensor):
    """One expert's matrix, as the architecture has it: products with it are its linear's."""

    _linear: nn.Module
    _transposed: bool

    @staticmethod
    def of(linear: nn.Module, name: str, *, transposed: bool) -> LazyMatrix:
        """The weight ``(out, in)`` of ``linear``, or that transposed."""
        weight: Any = linear.weight
        rows, columns = weight.shape

        def make() -> Tensor:
            current: Any = linear.weight
            made: Tensor = current._make() if isinstance(current, LazyTensor) else current
            return made.t() if transposed else made

        matrix = LazyMatrix((columns, rows) if transposed else (rows, columns), weight.dtype, weight.device, make, name)
        matrix._linear, matrix._transposed = linear, transposed
        return matrix

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        input, matrix = (*args, None, None)[:2]
        if isinstance(matrix, LazyMatrix) and isinstance(input, Tensor) and not isinstance(input, LazyTensor):
            if function is functional_linear and not matrix._transposed:
                return _plus(matrix._linear(input), *args[2:], **(kwargs or {}))
            if function in _MATMUL and matrix._transposed and input.ndim > 1:
                return matrix._linear(input)
        if function in _TRANSPOSE and isinstance(input, LazyMatrix):
            return LazyMatrix.of(input._linear, input._name, transposed=not input._transposed)
        return super().__torch_function__(function, types, args, kwargs)


class LazyStack(LazyTensor):
    """The matrices of all experts, as the architecture has them."""

    _matrices: Sequence[LazyMatrix]
    _transposed: bool

    @staticmethod
    def of(matrices: Sequence[LazyMatrix], make: Callable[[], Tensor], name: str) -> LazyStack:
        """``matrices``, which ``make`` makes all at once."""
        first = matrices[0]
        stack = LazyStack((len(matrices), *first.shape), first.dtype, first.device, make, name)
        stack._matrices, stack._transposed = matrices, first._transposed
        return stack

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first, second = (*args, None, None)[:2]
        if function is Tensor.__getitem__ and isinstance(first, LazyStack) and _is_one(second):
            return first._matrices[index(second)]
        if function is Tensor.view and isinstance(first, LazyStack) and _as_it_is(first, args[1:]):
            return first
        if function in _BMM and isinstance(second, LazyStack) and second._transposed and _is_batch(first, second):
            return torch.stack([matrix._linear(x) for x, matrix in zip(first, second._matrices, strict=True)])
        return super().__torch_function__(function, types, args, kwargs)


def _plus(product: Tensor, bias: Tensor | None = None) -> Tensor:
    return product if bias is None else product + bias


def _is_one(item: Any) -> bool:
    """Whether ``item`` stands for one expert, as an integer or a tensor of one does."""
    if isinstance(item, Tensor):
        return item.ndim == 0 and not item.is_floating_point() and item.dtype != torch.bool
    return isinstance(item, int) and not isinstance(item, bool)


def _as_it_is(stack: LazyStack, shape: Any) -> bool:
    """Whether a view of that shape is the stack as it is: DBRX asks for three dimensions."""
    sizes = shape[0] if len(shape) == 1 else shape
    if not isinstance(sizes, (tuple, list)) or len(sizes) != 3:
        return False
    return all(size in (-1, own) for size, own in zip(sizes, stack.shape, strict=True))


def _is_batch(input: Any, stack: LazyStack) -> bool:
    plain = isinstance(input, Tensor) and not isinstance(input, LazyTensor)
    return plain and input.ndim == 3 and len(input) == len(stack._matrices)


class _Views:
    """A packed stack with its linears, and the buffers that they are of. A copy of a module starts with none."""

    def __init__(self, of: tuple[object, ...] = (), stack: LazyStack | None = None) -> None:
        self.of, self.stack = of, stack

    def __reduce__(self) -> tuple[type[_Views], tuple[()]]:
        return _Views, ()


class PoTStack(PackedModule):
    """A packed stack of experts' matrices: one weight ``(experts * out, in)``.

    Attributes:
        experts: how many.
        transposed: whether the architecture has each matrix as ``(in, out)``.
        flat: whether its parameter has two dimensions.
    """

    experts: int
    transposed: bool
    flat: bool
    _views: _Views

    def __init__(self, stack: Stack, quantized: QuantizedWeight, name: str) -> None:
        super().__init__()
        self.experts, self.transposed, self.flat, self._name = stack.shape[0], stack.transposed, bool(stack.flat), name
        self.hold(quantized, stack.parameter.dtype)

    def hold(self, quantized: QuantizedWeight, dtype: torch.dtype) -> None:
        super().hold(quantized, dtype)
        self._views = _Views()

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Outputs and inputs of one expert."""
        return self._shape[0] // self.experts, self._shape[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PoTStack:
        super()._apply(fn, recurse)
        self._views = _Views()  # the buffers that they are of may go
        return self

    def _lazy(self, name: str) -> LazyTensor:
        """Linears are kept, and what kernels made of them, while the buffers are what they were."""
        of = (*self._buffers.values(), self.compute_dtype, self.activations)
        kept = self._views
        if kept.stack is None or len(kept.of) != len(of) or any(a is not b for a, b in zip(kept.of, of, strict=True)):
            matrices = [self._matrix(number) for number in range(self.experts)]
            stack = LazyStack.of(matrices, self._dequantized, name)
            self._views = _Views(of, stack)
            return stack
        return kept.stack

    def _matrix(self, number: int) -> LazyMatrix:
        rows, columns = self.matrix_shape
        name = f"{self._called}[{number}]"
        module = nn.Linear(columns, rows, bias=False, device="meta", dtype=self.compute_dtype)
        linear = pack_module(module, self.quantized.rows(slice(number * rows, (number + 1) * rows)), name)
        linear.activations = self.activations
        return LazyMatrix.of(linear, f"the weight of {name}", transposed=self.transposed)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (self.experts, *self.matrix_shape)

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        rows, columns = self.matrix_shape
        return (self.experts, columns, rows) if self.transposed else (self.experts, rows, columns)

    def _dequantized(self) -> Tensor:
        return as_stack(super()._dequantized(), self.experts, transposed=self.transposed)

    def extra_repr(self) -> str:
        rows, columns = self.matrix_shape
        return f"experts={self.experts}, in_features={columns}, out_features={rows}, scheme={self.scheme.name}"


class LinearStack(nn.Module):
    """A linear for each expert of a stack in full precision; they share its memory."""

    def __init__(self, stack: Stack, name: str) -> None:
        super().__init__()
        parameter = stack.in_three(stack.parameter.detach())
        for number, matrix in enumerate(parameter.mT if stack.transposed else parameter):
            linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(matrix, requires_grad=False)
            self.add_module(str(number), linear)
        self.transposed, self._name = stack.transposed, name

    @property
    def weight(self) -> LazyStack:
        """All matrices, as the architecture has them; products with one of them call its linear."""
        matrices = [
            LazyMatrix.of(linear, f"{self._name}[{number}]", transposed=self.transposed)
            for number, linear in enumerate(self.children())
        ]
        return LazyStack.of(matrices, lambda: torch.stack([matrix._make() for matrix in matrices]), self._name)


class StackedModule(nn.Module):
    """What a module of experts is while stacks of its are modules."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ever; writing to a stack comes here, and is refused."""
        if f"{PREFIX}{name}" in self._modules:
            raise read_only(name)
        super().register_parameter(name, param)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self._modules:
            key = prefix + name.removeprefix(PREFIX)
            if name.startswith(PREFIX) and key in state_dict:  # strict=False would drop it
                raise read_only(key)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@cache
def _stacked_class(kind: Any, keys: tuple[str, ...]) -> Any:
    """The class of modules of class ``kind`` while its parameters ``keys`` are modules."""
    loop = inspect.unwrap(kind.forward)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return loop(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        return _unpickled, (kind, keys), self.__dict__  # the class made here has no name that could be imported

    members = {"__module__": kind.__module__, "forward": forward, "__reduce_ex__": reduce, _FLOAT_CLASS: kind}
    return type(f"Stacked{kind.__name__}", (StackedModule, kind), members | {key: _reader(key) for key in keys})


def _unpickled(kind: Any, keys: tuple[str, ...]) -> Any:
    made = _stacked_class(kind, keys)
    return made.__new__(made)


def _reader(key: str) -> property:
    def read(self: nn.Module) -> Tensor:
        holder: Any = self._modules[PREFIX + key]
        weight: Tensor = holder.weight
        return weight

    return property(read)


def _reclass(module: nn.Module) -> None:
    """Give ``module`` the class that its stacks ask for."""
    kind: Any = getattr(type(module), _FLOAT_CLASS, type(module))
    keys = tuple(sorted(name.removeprefix(PREFIX) for name in module._modules if name.startswith(PREFIX)))
    module.__class__ = _stacked_class(kind, keys) if keys else kind


def _replace(stack: Stack, holder: nn.Module) -> None:
    module = stack.module
    module._parameters = {key: each for key, each in module._parameters.items() if key != stack.key}
    module._modules[PREFIX + stack.key] = holder.train(module.training)
    _reclass(module)


def pack_stack(stack: Stack, quantized: QuantizedWeight, name: str) -> PoTStack:
    """Put ``quantized`` ``(experts * out, in)`` in place of ``stack``, which its model calls ``name``."""
    packed = PoTStack(stack, quantized, name)
    _replace(stack, packed)
    return packed


def unpack_stack(module: nn.Module, key: str, dtype: torch.dtype) -> None:
    """Put the float parameter ``key`` back in place of its packed stack."""
    packed: Any = module._modules.pop(PREFIX + key)
    weight = packed._dequantized().to(dtype).contiguous()
    module._parameters = {key: nn.Parameter(weight.flatten(0, 1) if packed.flat else weight), **module._parameters}
    _reclass(module)


@contextmanager
def unstacked(stacks: dict[str, Stack]) -> Iterator[None]:
    """A linear for each expert in place of each stack, to be called, watched and given other weights one by one.

    Args:
        stacks: by name. The linears of ``a.b.key`` are called ``a.b.stacked_key.0`` and so on (:func:`holder_name`).
    """
    modules = dict.fromkeys(stack.module for stack in stacks.values())
    before = [(module, type(module), module._parameters) for module in modules]
    try:
        for name, stack in stacks.items():
            _replace(stack, LinearStack(stack, name))
        yield
    finally:
        for module, kind, parameters in before:
            for stack in stacks.values():
                if stack.module is module:
                    module._modules.pop(PREFIX + stack.key, None)
            module._parameters, module.__class__ = parameters, kind


def holder_name(name: str) -> str:
    """Of the module that holds the stack ``name``, once it is one."""
    parent, _, key = name.rpartition(".")
    return f"{parent}.{PREFIX}{key}".lstrip(".")


def stack_name(holder: str) -> str:
    """The inverse of :func:`holder_name`."""
    parent, _, key = holder.rpartition(".")
    return f"{parent}.{key.removeprefix(PREFIX)}".lstrip(".")
