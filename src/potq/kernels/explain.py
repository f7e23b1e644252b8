"""What runs, and why: for people, and for tools that print it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from potq import native
from potq.config import Activations, check_activations
from potq.errors import ConfigError
from potq.kernels import reference
from potq.kernels.cpu import backend as cpu
from potq.kernels.registry import choose
from potq.kernels.triton import backend as triton


@dataclass(frozen=True)
class Explanation:
    """How the products of one packed module are computed.

    Attributes:
        backend: "cpu", "triton" or "reference".
        detail: the instruction set, for the cpu backend; for embeddings on the triton one, that torch looks them up.
        activations: "int8" or "float": whether the inputs of a product are rounded.
        rejected: the reason for every backend that was asked first and cannot.

    Example:
        >>> from potq.kernels import Explanation
        >>> print(Explanation("reference", "", "float", {"cpu": "5 bits have no kernel"}))
        reference, float activations; not cpu: 5 bits have no kernel
    """

    backend: str
    detail: str
    activations: Activations
    rejected: dict[str, str]

    def __str__(self) -> str:
        name = f"{self.backend} ({self.detail})" if self.detail else self.backend
        reasons = "".join(f"; not {backend}: {reason}" for backend, reason in self.rejected.items())
        return f"{name}, {self.activations} activations{reasons}"


def explain(module: nn.Module) -> Explanation:
    """Which backend computes with a packed ``module`` now, and why each one before it does not.

    Raises:
        ConfigError: ``module`` is not packed, or ``POTQ_CPU_ISA`` cannot be used.

    Example:
        >>> import potq
        >>> model = potq.load("packed")
        >>> found = potq.kernels.explain(model.model.layers[0].mlp.up_proj)
        >>> found.backend, found.activations
        ('cpu', 'int8')
    """
    if not _is_packed(module):
        raise ConfigError(f"{type(module).__name__} is not a packed module; give explain() a packed one")
    packed: Any = module
    weight = packed.quantized
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        reason = "a convolution is computed with its dequantized kernel"
        return Explanation(reference.NAME, "", "float", dict.fromkeys((cpu.NAME, triton.NAME), reason))
    shape = getattr(packed, "matrix_shape", weight.shape)  # of one expert, where there is a stack of them
    chosen = choose(weight.scheme, shape, weight.packed.device, packed.compute_dtype)
    rounds = chosen.backend == cpu.NAME and not isinstance(module, nn.Embedding)
    detail = _detail(chosen.backend, isinstance(module, nn.Embedding))
    return Explanation(chosen.backend, detail, packed.activations if rounds else "float", chosen.rejected)


def _detail(backend: str, embedding: bool) -> str:
    if backend == cpu.NAME:
        return native.isa()
    return "rows by torch" if backend == triton.NAME and embedding else ""


def set_activations(model: nn.Module, activations: Activations) -> None:
    """Round the inputs of every packed product in ``model`` to int8 (the default, fast) or keep them ("float", exact).

    Raises:
        ConfigError: another word, or no packed module in ``model``.

    Example:
        >>> import potq
        >>> model = potq.load("packed")
        >>> potq.kernels.set_activations(model, "float")
        >>> potq.kernels.explain(model.model.layers[0].mlp.up_proj).activations
        'float'
    """
    check_activations(activations)
    packed: list[Any] = [module for module in model.modules() if _is_packed(module)]
    if not packed:
        raise ConfigError(f"{type(model).__name__} has no packed modules; quantize or load a potq checkpoint first")
    for module in packed:
        module.activations = activations


def use_kernels(model: nn.Module, activations: Activations) -> dict[str, int]:
    """Set how packed products treat activations; returns what computes them, and in how many modules each.

    A model without packed modules has nothing to set, and gives an empty mapping.

    Raises:
        ConfigError: another word for ``activations``.

    Example:
        >>> import potq
        >>> potq.kernels.use_kernels(potq.load("tiny"), "int8")
        {}
        >>> found = potq.kernels.use_kernels(potq.load("packed"), "int8")
        >>> sum(found.values())  # with the head, which is tied
        16
    """
    packed = [module for module in model.modules() if _is_packed(module)]
    if packed:
        set_activations(model, activations)
    return dict(Counter(str(explain(module)) for module in packed))


def kernel_lines(kernels: dict[str, int]) -> list[str]:
    """What :func:`use_kernels` gave, for people: a line per kernel."""
    return [f"{count} modules on {kernel}" for kernel, count in kernels.items()]


def _is_packed(module: nn.Module) -> bool:
    """By its attributes: the classes stand above the kernels."""
    return hasattr(module, "weight_packed") or getattr(module, "tied_to", None) is not None
