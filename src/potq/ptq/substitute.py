"""Other weights in a model for a while; whatever happens, its own come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from potq.nn.weights import Place
from potq.numerics.tensor import QuantizedWeight


class Exchange:
    """Weights that are not refined in two states: the model's own, and as they will be when quantized."""

    def __init__(self, model: nn.Module, fixed: dict[str, QuantizedWeight]) -> None:
        self._parameters: list[Tensor] = []
        self._others: list[Tensor] = []
        for name, quantized in fixed.items():
            place = Place.of(model, name)
            self._parameters.append(place.parameter)
            self._others.append(place.stored(quantized.dequantize()))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The other state: the quantized one, and within that the model's own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, parameter in enumerate(self._parameters):
            parameter.data, self._others[index] = self._others[index], parameter.data


@contextmanager
def substituted(block: nn.Module, values: dict[str, Tensor]) -> Iterator[Callable[[str, Tensor], None]]:
    """``values`` (and more by the function that is yielded) in place of the weights of ``block``'s layers, until the end."""
    kept: list[tuple[Tensor, Tensor]] = []

    def substitute(name: str, matrix: Tensor) -> None:
        place = Place.of(block, name)
        kept.append((place.parameter, place.parameter.data))
        place.parameter.data = place.stored(matrix)

    try:
        for name, matrix in values.items():
            substitute(name, matrix)
        yield substitute
    finally:
        for parameter, data in reversed(kept):
            parameter.data = data


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model itself gets a gradient."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]  # parts come and go
    for name in trained:
        model.get_parameter(name).requires_grad_(False)
    try:
        yield
    finally:
        for name in trained:
            model.get_parameter(name).requires_grad_(True)
