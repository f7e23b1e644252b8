"""Which scheme every linear gets: the best grid for it, or mixed precision under a budget, by measured sensitivity.

A layer's expected loss increase under a scheme is ``1/2 sum(F (w - w_hat)^2)``: ``F`` is the diagonal empirical Fisher
information on calibration text, ``w_hat`` the weight rounded to nearest. It is known up to a factor that all layers share
(gradients are a window's, averaged over its tokens): good to choose by, no forecast in nats.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from potq.config import PoTConfig, check_candidates, matches
from potq.errors import ConfigError
from potq.nn.language import language_plan
from potq.nn.plan import WeightPlan
from potq.nn.refusals import require_weights
from potq.nn.report import Progress
from potq.nn.weights import matrix_of, quantizable_weights
from potq.numerics.scheme import QuantScheme
from potq.ptq import calibration as calib
from potq.ptq.algorithms.rtn import rtn
from potq.ptq.weight import check_weight

if TYPE_CHECKING:
    from rich.table import Table


def allocate(
    model: nn.Module,
    config: PoTConfig,
    candidates: Sequence[QuantScheme | str],
    calibration: Iterable[Tensor],
    *,
    budget: float | None = None,
    progress: Progress | None = None,
) -> PoTConfig:
    """``config`` with one target for every linear, and stack of experts, of ``model``: the candidate that serves it best.

    What ``config`` says of targets, of ignored modules, and of embedding and head stays as it is; linears that its targets
    name take no part. :func:`measure` and :func:`choose` are the two halves, for several budgets or a look at the figures.

    Args:
        model: a Hugging Face causal LM in full precision; it is not changed.
        candidates: schemes, or presets' names, to choose from.
        calibration: batches of token ids ``(batch, length)``; one backward pass a window.
        budget: bits per weight, scales included, on average over these linears. None: for each linear the candidate of least
            expected loss among those that take no more bits than ``config.scheme``.
        progress: called before each matrix: weights done, weights in all, its name.

    Raises:
        ConfigError: no candidates, the same one twice, a budget that cannot be met, no linear to choose for.
        ModelError: NaN or infinite weights or gradients, layers that the text never reaches, a model that is not in memory;
            names the layer.
        DataError: calibration that is not token batches.

    Example:
        >>> import potq
        >>> model = potq.load("tiny")
        >>> batches = potq.load_calibration("self", model, window=32, windows=4)
        >>> config = potq.allocate(model, potq.PoTConfig("pot4"), ["pot3", "pot4"], batches, budget=4.0)
        >>> sorted({scheme.name for scheme in config.targets.values()})
        ['pot3-g64', 'pot4-g64']
        >>> len(potq.quantize(model, config).modules)
        15
    """
    layers = measure(model, config, candidates, calibration, progress=progress)
    return choose(config, layers, budget=budget).config


@dataclass(frozen=True)
class Option:
    """A scheme that a layer could get: its stored bits (all of the layer's, scales included) and its expected loss."""

    scheme: QuantScheme
    bits: int
    loss: float


@dataclass(frozen=True)
class LayerOptions:
    """A linear, its options in the order of the candidates, and the exact patterns of it and of what is tied to it."""

    name: str
    shape: tuple[int, int]
    options: tuple[Option, ...]
    patterns: tuple[str, ...]

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Allocation:
    """What was chosen: ``chosen`` holds the index of each layer's option."""

    config: PoTConfig
    layers: tuple[LayerOptions, ...]
    chosen: tuple[int, ...]

    @property
    def choice(self) -> dict[str, Option]:
        """Each layer's option, by name."""
        return {layer.name: layer.options[index] for layer, index in zip(self.layers, self.chosen, strict=True)}

    @property
    def expected_loss(self) -> float:
        return math.fsum(option.loss for option in self.choice.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over the layers, scales included."""
        return sum(option.bits for option in self.choice.values()) / sum(layer.weights for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the totals, and each layer's expected loss under every candidate."""
        return {
            "bits_per_weight": self.bits_per_weight,
            "expected_loss": self.expected_loss,
            "layers": {
                layer.name: {
                    "chosen": layer.options[index].scheme.name,
                    "expected_loss": {option.scheme.name: option.loss for option in layer.options},
                }
                for layer, index in zip(self.layers, self.chosen, strict=True)
            },
        }

    def table(self) -> Table:
        """How many layers of each kind got which scheme; layers that differ only by their number share a row."""
        from rich import box
        from rich.table import Table

        size = f"{len(self.layers)} linears at {self.bits_per_weight:.4f} bits per weight"
        schemes = [option.scheme.name for option in self.layers[0].options]
        table = Table(title=f"{size}, expected loss {self.expected_loss:.4g}", title_justify="left", box=box.SIMPLE)
        table.add_column("module", overflow="fold")
        for name in (*schemes, "bits", "expected loss"):
            table.add_column(name, justify="right")
        rows: dict[str, list[int]] = defaultdict(list)
        for number, layer in enumerate(self.layers):
            rows[re.sub(r"(?<=\.)\d+(?=\.)", "*", layer.name)].append(number)
        for label, numbers in rows.items():
            options = [self.layers[number].options[self.chosen[number]] for number in numbers]
            counts = [sum(self.chosen[number] == index for number in numbers) for index in range(len(schemes))]
            bits = sum(option.bits for option in options) / sum(self.layers[number].weights for number in numbers)
            loss = math.fsum(option.loss for option in options)
            table.add_row(label, *(str(count or "") for count in counts), f"{bits:.2f}", f"{loss:.3g}")
        return table


def measure(
    model: nn.Module,
    config: PoTConfig,
    candidates: Sequence[QuantScheme | str],
    calibration: Iterable[Tensor],
    *,
    progress: Progress | None = None,
) -> tuple[LayerOptions, ...]:
    """What every candidate would cost every linear; arguments and errors as in :func:`allocate`."""
    schemes = check_candidates(candidates)
    targets = _to_choose_for(model, config)
    require_weights(model)
    batches = calib.check_batches(calibration, model)
    for target in targets:
        weight = matrix_of(model, target.name)
        for scheme in schemes:
            check_weight(weight, replace(target, scheme=scheme))
    fisher = calib.mean_squared_gradients(model, [target.name for target in targets], batches)
    names = [*(name for name, _ in model.named_modules()), *quantizable_weights(model)]
    layers = []
    count, total = 0, sum(target.weights for target in targets)
    for target in targets:
        if progress is not None:
            progress(count, total, target.name)
        count += target.weights
        weight = matrix_of(model, target.name).float()
        importance = fisher.pop(target.name)
        options = tuple(_option(weight, importance, scheme) for scheme in schemes)
        patterns = tuple(_exact_pattern(name, names) for name in target.names)
        layers.append(LayerOptions(target.name, target.shape, options, patterns))
    return tuple(layers)


def choose(config: PoTConfig, layers: Sequence[LayerOptions], *, budget: float | None = None) -> Allocation:
    """The allocation for ``layers``; arguments and errors as in :func:`allocate`."""
    chosen = _best_grids(config.scheme, layers) if budget is None else within_budget(layers, budget)
    found = {
        pattern: layer.options[index].scheme
        for layer, index in zip(layers, chosen, strict=True)
        for pattern in layer.patterns
    }
    named = config.model_copy(update={"targets": {**config.targets, **found}})
    return Allocation(named, tuple(layers), tuple(chosen))


def within_budget(layers: Sequence[LayerOptions], budget: float) -> list[int]:
    """Indices of the options of least expected loss that are found within ``budget`` bits per weight.

    The step that gains most per bit is taken again and again, from each layer's cheapest option: up its lower convex hull,
    until only smaller steps fit, then those. The same from every uniform assignment that fits, so that the result is never
    worse than one.

    Raises:
        ConfigError: an invalid budget, or one below what the cheapest options take.
    """
    if not 0 < budget < math.inf:
        raise ConfigError(f"invalid budget {budget}; give a positive number of bits per weight, e.g. 3.25")
    weights = sum(layer.weights for layer in layers)
    limit = math.floor(Fraction(budget) * weights)
    cheapest = [min((o.bits, o.loss, index) for index, o in enumerate(layer.options))[2] for layer in layers]
    starts = [cheapest, *([index] * len(layers) for index in range(len(layers[0].options)))]
    found = [_climb(layers, start, limit) for start in starts if _bits(layers, start) <= limit]
    if not found:
        least = math.ceil(10_000 * _bits(layers, cheapest) / weights) / 10_000
        raise ConfigError(f"a budget of {budget} bits per weight cannot be met: these candidates take at least {least:.4f}")
    return min(found, key=lambda chosen: _loss(layers, chosen))


def _climb(layers: Sequence[LayerOptions], start: list[int], limit: int) -> list[int]:
    """From ``start``, the steps of most gain per bit that fit into ``limit`` bits in all."""
    chosen, left = list(start), limit - _bits(layers, start)
    # what is left only shrinks, so a layer's best step of before is at least as good as its best one now
    steps = [step for number in range(len(layers)) if (step := _best_step(layers, number, chosen, left)) is not None]
    heapq.heapify(steps)
    while steps:
        _, number, index = heapq.heappop(steps)
        extra = layers[number].options[index].bits - layers[number].options[chosen[number]].bits
        if extra <= left:
            chosen[number] = index
            left -= extra
        step = _best_step(layers, number, chosen, left)
        if step is not None:
            heapq.heappush(steps, step)
    return chosen


def _best_step(layers: Sequence[LayerOptions], number: int, chosen: list[int], left: int) -> tuple[float, int, int] | None:
    """Minus the gain per bit, the layer's number, the option's index; None if no step helps or fits."""
    options = layers[number].options
    now = options[chosen[number]]
    steps = [
        (-(now.loss - option.loss) / max(option.bits - now.bits, 0) if option.bits > now.bits else -math.inf, number, index)
        for index, option in enumerate(options)
        if option.loss < now.loss and option.bits - now.bits <= left
    ]
    return min(steps, default=None)


def _best_grids(scheme: QuantScheme, layers: Sequence[LayerOptions]) -> list[int]:
    """Each layer's option of least expected loss that takes no more bits than ``scheme``."""
    chosen = []
    for layer in layers:
        limit = _stored_bits(scheme, layer.shape)
        fitting = [(o.loss, o.bits, index) for index, o in enumerate(layer.options) if o.bits <= limit]
        if not fitting:
            raise ConfigError(
                f"{layer.name}: no candidate takes at most the {limit / layer.weights:.4f} bits per weight of "
                f"{scheme.name}; add a smaller candidate, or give a budget"
            )
        chosen.append(min(fitting)[2])
    return chosen


def _bits(layers: Sequence[LayerOptions], chosen: Sequence[int]) -> int:
    return sum(layer.options[index].bits for layer, index in zip(layers, chosen, strict=True))


def _loss(layers: Sequence[LayerOptions], chosen: Sequence[int]) -> float:
    return math.fsum(layer.options[index].loss for layer, index in zip(layers, chosen, strict=True))


def _option(weight: Tensor, importance: Tensor, scheme: QuantScheme) -> Option:
    error = rtn(weight, scheme).dequantize() - weight
    loss = 0.5 * float((importance * error.square()).double().sum())
    return Option(scheme, _stored_bits(scheme, (weight.shape[0], weight.shape[1])), loss)


def _stored_bits(scheme: QuantScheme, shape: tuple[int, int]) -> int:
    return round(scheme.bits_per_weight(*shape) * shape[0] * shape[1])


def _to_choose_for(model: nn.Module, config: PoTConfig) -> list[WeightPlan]:
    """The linears and stacks of experts that neither ``config.ignore`` nor ``config.targets`` name."""
    linears = [target for target in language_plan(model, config)[1].targets if target.kind in ("linear", "experts")]
    free = [t for t in linears if not any(matches(pattern, name) for pattern in config.targets for name in t.names)]
    if not free:
        raise ConfigError("no linear is left to choose a scheme for: all are ignored, or named by targets")
    return free


def _exact_pattern(name: str, names: list[str]) -> str:
    """A pattern that matches this module and none whose dotted name ends like it."""
    shared = any(other.endswith(f".{name}") for other in names)
    return "^" * shared + re.escape(name)
