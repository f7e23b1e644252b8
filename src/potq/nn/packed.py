"""Inference modules over a packed weight: :class:`PoTLinear`, :class:`PoTEmbedding`, and convolutions.

They hold flat buffers (``weight_packed``, ``weight_scale``, ``weight_row_scale`` if the scheme has it), so state dicts,
safetensors, DDP and ``torch.compile`` need to know nothing about them, and they are ``nn.Linear`` / ``nn.Embedding`` to
whoever asks. ``weight`` is a read-only property that dequantizes. Casting a model (``.half()``, ``.to(bfloat16)``) changes
what they compute in, never codes or scales.

A module whose weight is tied to another's (a head to the embedding) owns no buffers and reads its owner's: the tensor is
stored, moved and saved once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, is_autocast_enabled, is_grad_enabled, nn
from torch.compiler import is_compiling

from potq.kernels import Activations, ops, reference, registry
from potq.kernels.prepared import Ready
from potq.kernels.registry import BACKENDS, Backend, choose
from potq.kernels.weight import PackedWeight, Product, check_device, check_input
from potq.nn.convolution import kernel_shape
from potq.nn.lazy import LazyTensor, read_only
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight


class ScaledModule(nn.Module):
    """A module with stored scales, which casting leaves alone: 0.0123 in float16 would become 0.01233 in bfloat16."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScaledModule:
        scales = {name: self._buffers.get(name) for name in ("weight_scale", "weight_row_scale")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in scales.items():
            after = self._buffers.get(name)
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self


class _Kept(dict[torch.dtype, "weakref.ref[Ready[Product]]"]):
    """Weak: a weight that goes takes what was made of it along. A copy of a module starts with none."""

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


class PackedModule(ScaledModule):
    """What both inference modules share: storage, tying, casting."""

    _is_hf_initialized: bool
    scheme: QuantScheme
    compute_dtype: torch.dtype
    activations: Activations
    weight_packed: Tensor
    weight_scale: Tensor
    weight_row_scale: Tensor  # where the scheme has it
    _shape: tuple[int, int]
    _spec: str  # the scheme as the ops take it
    _backends: dict[tuple[torch.device, torch.dtype], str]  # what was chosen, by device of the weight and dtype of the input
    _kept: _Kept  # by dtype of the input, the prepared weight of the last call
    _owner: tuple[PackedModule, ...]  # a tuple hides the owner from nn.Module's registry
    _name: str = ""  # in its model; for errors

    def hold(self, quantized: QuantizedWeight, dtype: torch.dtype) -> None:
        """Take ``quantized`` as the weight, in place of the parameter; compute in ``dtype``."""
        self._parameters.pop("weight", None)
        self._buffers.pop("weight_row_scale", None)  # another scheme's
        for name, tensor in quantized.tensors().items():
            self.register_buffer(f"weight_{name}", tensor)
        self._adopt(quantized.shape, quantized.scheme, dtype, ())

    def tie(self, owner: PackedModule, dtype: torch.dtype) -> None:
        """Read ``owner``'s weight from now on."""
        self._parameters.pop("weight", None)
        self._adopt(owner._shape, owner.scheme, dtype, (owner,))

    def _adopt(
        self, shape: tuple[int, int], scheme: QuantScheme, dtype: torch.dtype, owner: tuple[PackedModule, ...]
    ) -> None:
        self.scheme, self.compute_dtype, self._shape, self._owner = scheme, dtype, shape, owner
        self.activations = "int8"
        self._spec, self._backends, self._kept = scheme.model_dump_json(), {}, _Kept()
        # keeps transformers' initialisation away from the weight; buffers that it must fill (Gemma's scale) still get theirs
        self._is_hf_initialized = not self._non_persistent_buffers_set

    @property
    def tied_to(self) -> PackedModule | None:
        """The module whose weight this one reads, if it is tied."""
        return self._owner[0] if self._owner else None

    @property
    def quantized(self) -> QuantizedWeight:
        """The packed weight, sharing storage with the buffers."""
        weight = self._packed()
        return QuantizedWeight(weight.packed, weight.scale, self._shape, self.scheme, weight.row_scale)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of the weight, for people: ``(out, in)``."""
        return self._shape

    @property
    def weight(self) -> Tensor:
        """The dequantized weight in ``compute_dtype``, for reading only; made by whatever computes with it."""
        if is_compiling():
            return self._dequantized()
        weight = self._lazy(f"the weight of {self._called}")
        weight._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers' mark: not to be initialised
        return weight

    @weight.setter
    def weight(self, value: object) -> None:
        raise read_only(f"the weight of {self._called}")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ever; ``module.weight = nn.Parameter(...)`` comes here, and is refused."""
        if name == "weight":
            raise read_only(f"the weight of {self._called}")
        super().register_parameter(name, param)

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """The weight, which refuses to be trained, and the parameters that there are (the bias).

        Whoever wants to train this module asks for them: ``requires_grad_``, optimizers, peft's ``modules_to_save``.
        """
        yield self.weight
        yield from super().parameters(recurse)

    def _lazy(self, name: str) -> LazyTensor:
        return LazyTensor(self._weight_shape, self.compute_dtype, self._packed().packed.device, self._dequantized, name)

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def _called(self) -> str:
        return self._name or type(self).__name__

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}weight" in state_dict:  # strict=False would drop it
            raise read_only(f"the weight of {self._called}")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _dequantized(self) -> Tensor:
        return reference.matrix(self._packed(), self.compute_dtype)

    def _packed(self) -> PackedWeight:
        buffers = self._tensors()
        return PackedWeight(
            buffers["weight_packed"],
            buffers["weight_scale"],
            self.scheme,
            self._shape[1],
            buffers.get("weight_row_scale"),
        )

    def _tensors(self) -> dict[str, Any]:
        """Codes and scales, this module's or its owner's; past ``nn.Module.__getattr__``, which costs a microsecond."""
        return (self._owner[0] if self._owner else self)._buffers

    def _backend(self, device: torch.device, dtype: torch.dtype) -> Backend:
        name = self._backends.get((device, dtype))
        if name is None:
            name = self._backends[device, dtype] = choose(self.scheme, self._shape, device, dtype).backend
        return BACKENDS[name]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedModule:
        super()._apply(fn, recurse)
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self

    def extra_repr(self) -> str:
        tied = ", tied" if self._owner else ""
        return f"{super().extra_repr()}, scheme={self.scheme.name}{tied}"


class PoTLinear(PackedModule, nn.Linear):
    """``y = x W^T + b`` with a packed ``W`` of shape ``(out_features, in_features)``; the bias stays a float parameter."""

    def forward(self, input: Tensor) -> Tensor:
        bias = self._parameters["bias"]
        kind = "cpu" if input.is_cpu else input.device.type  # a string that torch makes anew
        if kind != "meta" and is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        needs_grad = is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad))
        if needs_grad or is_compiling():
            return self._by_op(input, bias)
        return self._product(input.dtype)(input, bias, self.activations)

    def _by_op(self, input: Tensor, bias: Tensor | None) -> Tensor:
        weight = self._packed()
        check_input(input, weight.shape, weight.packed.device)
        result: Tensor = ops.linear(input, weight.packed, weight.scale, bias, self._spec, self.activations, weight.row_scale)
        return result

    def _product(self, dtype: torch.dtype) -> Product:
        """What multiplies inputs of ``dtype`` and checks them: the last call's, while the weight is what it was."""
        buffers, kept = self._tensors(), self._kept.get(dtype)
        ready = None if kept is None else kept()
        if ready is not None and ready.is_of(buffers["weight_packed"], buffers["weight_scale"]):
            return ready.made
        weight = self._packed()
        backend = self._backend(weight.packed.device, dtype)
        ready = registry.ready(backend, weight)
        if ready is None:
            return partial(_multiply, backend, weight)
        self._kept[dtype] = weakref.ref(ready)
        return ready.made


def _multiply(
    backend: Backend, weight: PackedWeight, input: Tensor, bias: Tensor | None, activations: Activations
) -> Tensor:
    check_input(input, weight.shape, weight.packed.device)
    return backend.linear(input, weight, bias, activations)


class PoTEmbedding(PackedModule, nn.Embedding):
    """Look-up of packed rows ``(num_embeddings, embedding_dim)``; yields ``compute_dtype``."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self._packed()
        check_device(input, weight.packed.device)
        if input.dtype not in (torch.int64, torch.int32):
            raise RuntimeError(f"ids are Long or Int tensors, found {input.dtype}")
        if is_compiling():
            result: Tensor = ops.embedding(
                input, weight.packed, weight.scale, self._spec, weight.columns, self.compute_dtype, weight.row_scale
            )
            return result
        return self._backend(weight.packed.device, self.compute_dtype).embedding(input, weight, self.compute_dtype)


class _PackedConvolution(PackedModule):
    """A convolution with a packed kernel, which is dequantized at every use: no kernel of ours convolves.

    Its weight is packed as ``(out, in / groups * size)``. Activations are never rounded.
    """

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return kernel_shape(self)  # type: ignore[arg-type]  # it is one by its other base

    def _dequantized(self) -> Tensor:
        return super()._dequantized().view(self._weight_shape)

    def forward(self, input: Tensor) -> Tensor:
        check_device(input, self._tensors()["weight_packed"].device)
        this: Any = self
        result: Tensor = this._conv_forward(input, self._dequantized(), self._parameters["bias"])
        return result


class PoTConv1d(_PackedConvolution, nn.Conv1d):
    """``nn.Conv1d`` with a packed kernel, which is dequantized at every use."""


class PoTConv2d(_PackedConvolution, nn.Conv2d):
    """``nn.Conv2d`` with a packed kernel, which is dequantized at every use."""


_PACKED: dict[type[nn.Module], type[PackedModule]] = {
    nn.Linear: PoTLinear,
    nn.Embedding: PoTEmbedding,
    nn.Conv1d: PoTConv1d,
    nn.Conv2d: PoTConv2d,
}


@cache
def packed_class(kind: type[nn.Module]) -> type[PackedModule]:
    """The inference class for modules of class ``kind``: linear, embedding, convolution, or a subclass of these.

    A subclass with a forward of its own (Gemma's scaled embedding, OPT's positions) keeps it: the class made here puts ours
    behind it in the method resolution order, so that its ``super().forward()`` and its ``self.weight`` reach us. Such a
    class has no importable name: its state dict can be saved and it can be deep-copied, but not pickled.
    """
    if kind in _PACKED:
        return _PACKED[kind]
    base = next(packed for float_class, packed in _PACKED.items() if issubclass(kind, float_class))
    return type(f"PoT{kind.__name__}", (kind, base), {"__module__": __name__, "__doc__": base.__doc__})


def pack_module(module: Any, weight: QuantizedWeight | PackedModule, name: str = "") -> PackedModule:
    """Turn ``module``, which its model calls ``name``, into its packed form, holding ``weight`` or tied to it.

    Linears, embeddings and convolutions change class in place and keep their hooks and attributes; anything else is a
    GPT-2 ``Conv1D``, for which a new :class:`PoTLinear` that shares its bias is returned.
    """
    dtype = module.weight.dtype
    packed: Any = module if isinstance(module, tuple(_PACKED)) else _linear_of(module)
    packed.__class__, packed._name = packed_class(packed.__class__), name
    if isinstance(weight, QuantizedWeight):
        packed.hold(weight, dtype)
    else:
        packed.tie(weight, dtype)
    result: PackedModule = packed
    return result


def unpack_module(module: PackedModule, weight: nn.Parameter) -> None:
    """Turn a packed module back in place into the float module it was, with ``weight``; of GPT-2's ``Conv1D`` a linear."""
    anything: Any = module
    kind = type(module)
    floats = {packed: float_class for float_class, packed in _PACKED.items()}
    anything.__class__ = floats.get(kind) or kind.__bases__[0]  # see packed_class
    for name in PackedModule.__annotations__:
        module._buffers.pop(name, None)
        module.__dict__.pop(name, None)
    anything._parameters = {"weight": weight, **module._parameters}


def _linear_of(conv1d: Any) -> Any:
    inputs, outputs = conv1d.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.bias = conv1d.bias
    return linear.train(conv1d.training)
