"""Which backend computes with a weight, and why not another.

A backend is a module with ``NAME``, ``supports(scheme, shape, device, dtype) -> reason it cannot | None``, ``linear`` and
``embedding`` (see :mod:`potq.kernels.cpu.backend`). Backends are asked in order; the torch reference can do everything.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from potq import native
from potq.config import Activations
from potq.kernels import reference
from potq.kernels.cpu import backend as cpu
from potq.kernels.prepared import Ready
from potq.kernels.triton import backend as triton
from potq.kernels.weight import PackedWeight, Product
from potq.numerics.scheme import QuantScheme


class Backend(Protocol):
    """What a backend offers."""

    NAME: str

    def supports(self, scheme: QuantScheme, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot compute with such a weight, or None if it can."""

    def linear(self, input: Tensor, weight: PackedWeight, bias: Tensor | None, activations: Activations) -> Tensor:
        """``input W^T + bias`` in ``input``'s dtype."""

    def embedding(self, ids: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
        """Rows ``ids`` of the weight in ``dtype``."""


BACKENDS: dict[str, Backend] = {backend.NAME: backend for backend in (cpu, triton, reference)}


def register_backend(backend: Backend) -> None:
    """Ask ``backend`` before all others; it replaces one of the same name. Packed modules made before keep their choice.

    Args:
        backend: a module or object with what :class:`~potq.kernels.registry.Backend` lists. Its products must equal the
            reference's.

    Example:
        >>> import potq
        >>> from potq.kernels import reference, register_backend
        >>> register_backend(reference)  # from now on products are exact, and slow
        >>> potq.kernels.explain(potq.load("packed").model.layers[0].mlp.up_proj).backend
        'reference'
    """
    if backend.NAME == cpu.NAME and backend is not cpu:
        cpu.kernels.clear()  # modules keep none then, and ask here
    others = {name: other for name, other in BACKENDS.items() if name != backend.NAME}
    BACKENDS.clear()
    BACKENDS.update({backend.NAME: backend, **others})
    choose.cache_clear()


@dataclass(frozen=True)
class Choice:
    """The backend for a weight, and why each one asked before it was passed over."""

    backend: str
    rejected: dict[str, str]


def ready(backend: Backend, weight: PackedWeight) -> Ready[Product] | None:
    """The product of ``backend`` with a weight, for a module to keep while the weight is what it was; None if it makes none.

    It checks its inputs (:func:`~potq.kernels.weight.check_input`), as whoever calls a backend's ``linear`` does.
    """
    return cpu.ready(weight) if backend is cpu else None


@lru_cache(maxsize=4096)
def choose(scheme: QuantScheme, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Choice:
    """The first backend that can compute with a weight ``(out, in)`` on ``device`` for inputs of ``dtype``."""
    rejected: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        reason = backend.supports(scheme, shape, device, dtype)
        if reason is None:
            break
        rejected[name] = reason
    missing = native.missing() if device.type == "cpu" else None
    if missing and name == reference.NAME:
        _warn_once(missing)
    return Choice(name, rejected)


@lru_cache(maxsize=1)
def _warn_once(reason: str) -> None:
    warnings.warn(f"potq computes with the slow torch reference: {reason}", RuntimeWarning, stacklevel=2)
