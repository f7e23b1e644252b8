"""Training modules: linears, GPT-2's ``Conv1D``, embeddings and convolutions whose float weight is rounded at every use.

A module changes class in place: ``weight`` stays the float parameter that it was, under the same key, and a checkpoint stays
an ordinary one. What is added are the scales: buffers that no state dict holds (the trainer keeps them in a file of their
own), and with ``scales="learned"`` a parameter ``weight_log2_scale``, zero to begin with: ``scale = stored(first scale *
2**it)``.

Modules whose weight is tied (a head to the embedding) share one parameter as ever, and the scales of the module that owns
it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from potq.nn.convolution import convolve
from potq.nn.lazy import LazyTensor
from potq.nn.packed import ScaledModule
from potq.nn.weights import as_matrix, as_weight
from potq.numerics.fake_quantize import fake_quantize
from potq.numerics.functional import decode_scale, encode_scale
from potq.numerics.scheme import QuantScheme, ScaleMethod
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.rtn import choose_scales
from potq.qat.linear import quantized_linear
from potq.qat.settings import QATSettings

_BUFFERS = ("weight_scale", "weight_row_scale")
_LEARNED = "weight_log2_scale"


class QATModule(ScaledModule):
    """What the training modules share: scales, tying, the way back."""

    scheme: QuantScheme
    settings: QATSettings
    weight: nn.Parameter
    weight_scale: Tensor
    _method: ScaleMethod
    _candidates: int | None
    _stale: bool  # scales are searched at the next pass
    _owner: tuple[QATModule, ...]  # a tuple hides the owner from nn.Module's registry

    def hold(
        self,
        scheme: QuantScheme,
        settings: QATSettings,
        scales: tuple[Tensor, Tensor | None],
        *,
        method: ScaleMethod = "mse",
        candidates: int | None = None,
    ) -> None:
        """Round the weight to ``scheme`` from now on, starting with these stored ``scales`` (and row scales)."""
        self.scheme, self.settings = scheme, settings
        self._method, self._candidates, self._stale, self._owner = method, candidates, False, ()
        for name, tensor in zip(_BUFFERS, scales, strict=True):
            self.register_buffer(name, tensor, persistent=False)
        if settings.scales == "learned":
            self.register_parameter(_LEARNED, nn.Parameter(torch.zeros(scales[0].shape, device=scales[0].device)))

    def tie(self, owner: QATModule) -> None:
        """Round as ``owner``, whose weight this is, does."""
        self.scheme, self.settings, self._owner = owner.scheme, owner.settings, (owner,)

    @property
    def tied_to(self) -> QATModule | None:
        """The module whose scales this one reads, if it is tied."""
        return self._owner[0] if self._owner else None

    @property
    def matrix(self) -> Tensor:
        """The latent weight ``(out, in)``."""
        latent: Any = self._parameters["weight"]
        return as_matrix(self, latent)

    def refresh_scales(self) -> None:
        """Search scales, if that is how they are found, at the next training pass: there the weight is whole, even if it is
        sharded between passes."""
        self._stale = self.settings.scales == "searched"

    def scale(self) -> Tensor:
        """What the scales are worth, float32 ``(out, groups)``; with a gradient if they are learned."""
        if self._owner:
            return self._owner[0].scale()
        if self._stale and self.training:
            self._search()
        learned = self._parameters.get(_LEARNED)
        if learned is None:
            return decode_scale(*self._stored())
        # exp2(0) is 1, exactly: the value is the stored scale's, the gradient that of scale * 2**learned
        return decode_scale(*self._stored()) * torch.exp2(learned.float() - learned.float().detach())

    @torch.no_grad()
    def quantized(self) -> QuantizedWeight:
        """The weight as it is rounded now, packed."""
        owner = self._owner[0] if self._owner else self
        scale, row_scale = owner._stored()
        return QuantizedWeight.from_scale(self.matrix.float(), scale, self.scheme, row_scale)

    def restore(self) -> None:
        """Be the float module that this one was."""
        for name in _BUFFERS:
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
        self._parameters.pop(_LEARNED, None)
        for name in ("scheme", "settings", "_method", "_candidates", "_stale", "_owner", "_inside"):
            self.__dict__.pop(name, None)
        self.__class__ = _float_class(type(self))  # type: ignore[assignment]  # mypy sees no common layout

    @torch.no_grad()
    def _stored(self) -> tuple[Tensor, Tensor | None]:
        """Stored scales, and row scales."""
        row_scale = self._buffers.get("weight_row_scale")
        learned = self._parameters.get(_LEARNED)
        if learned is None:
            return self.weight_scale, row_scale
        first = decode_scale(self.weight_scale)
        return encode_scale(first * torch.exp2(learned.float()), self.scheme.scale_dtype), row_scale

    @torch.no_grad()
    def _search(self) -> None:
        with torch.autocast(self.weight_scale.device.type, enabled=False):
            found = choose_scales(self.matrix, self.scheme, method=self._method, candidates=self._candidates)
        for name, tensor in zip(_BUFFERS, found, strict=True):
            if tensor is not None:
                self._buffers[name].copy_(tensor)  # type: ignore[union-attr]  # a scheme's buffers stay the same
        self._stale = False

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scheme={self.scheme.name}, scales={self.settings.scales}"


class QATLinear(QATModule, nn.Linear):  # type: ignore[misc]  # weight is declared twice
    """``nn.Linear`` with a rounded weight; the rounded one is made for each pass and not kept."""

    def forward(self, input: Tensor) -> Tensor:
        return quantized_linear(input, self.matrix, self.scale(), self.bias, self.scheme, self.settings.activations)


class QATEmbedding(QATModule, nn.Embedding):  # type: ignore[misc]
    """``nn.Embedding`` with rounded rows; only those that are looked up are rounded."""

    def forward(self, input: Tensor) -> Tensor:
        ids, scale = input.flatten(), self.scale()
        rows = embedding(ids, self.matrix, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)
        rows = fake_quantize(rows, scale[ids] if len(scale) > 1 else scale, self.scheme)
        return rows.view(*input.shape, self.embedding_dim)


class _QATConvolution(QATModule):
    """A convolution with a rounded kernel; inputs are never rounded, as packed ones never round theirs."""

    def forward(self, input: Tensor) -> Tensor:
        this: Any = self
        return convolve(this, input, fake_quantize(self.matrix, self.scale(), self.scheme), this.bias)


class QATConv1d(_QATConvolution, nn.Conv1d):  # type: ignore[misc]
    """``nn.Conv1d`` with a rounded kernel."""


class QATConv2d(_QATConvolution, nn.Conv2d):  # type: ignore[misc]
    """``nn.Conv2d`` with a rounded kernel."""


_TRAINING: dict[type[nn.Module], type[QATModule]] = {
    nn.Linear: QATLinear,
    nn.Embedding: QATEmbedding,
    nn.Conv1d: QATConv1d,
    nn.Conv2d: QATConv2d,
}


@cache
def qat_class(kind: type[nn.Module]) -> type[QATModule]:
    """The training class for modules of class ``kind``: linear, embedding, convolution, a subclass of them, or ``Conv1D``.

    A subclass with a forward of its own (Gemma's scaled embedding, OPT's positions) keeps it, and ours stands behind it in
    the method resolution order. In that forward ``self.weight`` is the rounded weight.
    """
    if kind in _TRAINING:
        return _TRAINING[kind]
    base = next((made for float_class, made in _TRAINING.items() if issubclass(kind, float_class)), None)
    if base is None:  # Conv1D: another orientation, the same product
        conv1d: Any = type("QATConv1D", (QATModule, kind), {"__module__": __name__, "forward": QATLinear.forward})
        return cast(type[QATModule], conv1d)

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        self.__dict__["_inside"] = True
        try:
            return super(made, self).forward(*args, **options)
        finally:
            self.__dict__["_inside"] = False

    def weight(self: Any) -> Tensor:
        latent: Tensor = self._parameters["weight"]
        if not self.__dict__.get("_inside", False):
            return latent

        def rounded() -> Tensor:
            return as_weight(self, fake_quantize(self.matrix, self.scale(), self.scheme))

        if torch.compiler.is_compiling():
            return rounded()
        return LazyTensor(latent.shape, latent.dtype, latent.device, rounded, f"the rounded weight of {kind.__name__}")

    members = {"__module__": __name__, "forward": forward, "weight": property(weight)}
    made: Any = type(f"QAT{kind.__name__}", (kind, base), members)
    return cast(type[QATModule], made)


def _float_class(kind: type[QATModule]) -> type[nn.Module]:
    """The class that :func:`qat_class` was given."""
    if kind in _TRAINING.values():
        return next(float_class for float_class, made in _TRAINING.items() if made is kind)
    bases: Any = kind.__mro__
    return cast(type[nn.Module], next(base for base in bases if not issubclass(base, ScaledModule)))
