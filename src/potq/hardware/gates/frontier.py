"""The variants of a model on the frontier: perplexity against area, toggles and bytes, and which schemes nothing beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from potq.config import PoTConfig
from potq.errors import ConfigError
from potq.evaluate.compare import FULL_PRECISION, KeptRows, Protocol, Row, measure_row
from potq.hardware.gates import tools
from potq.hardware.gates.measure import Stream, sources_of, toggles_of
from potq.hardware.gates.stream import in_integers, inputs_of, layer_stream
from potq.hardware.gates.synthesis import Gates, gates
from potq.hardware.rtl.design import Design, design_of
from potq.hardware.rtl.product import contenders
from potq.nn.language import language_plan
from potq.nn.packed_model import packed_modules
from potq.nn.report import Progress
from potq.numerics.scheme import QuantScheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COSTS = ("area", "toggles", "bytes")


@dataclass(frozen=True)
class Circuit:
    """What a scheme costs on standard cells.

    Attributes:
        structure: the one of the least area.
        dot: area of a dot product, in square micrometres for each of its lanes.
        scaling: area of a scaling unit, for each product of a group: it serves as many dot products as a group has cycles.
        delay: of the dot product, in nanoseconds.
        toggles: changes of nets for each product, by a multiply-accumulate unit on a real layer.
    """

    structure: str
    dot: float
    scaling: float
    delay: float
    toggles: float


@dataclass(frozen=True)
class Point:
    """A scheme with activations of so many bits, measured.

    Attributes:
        bytes: of the quantized part, for each weight.
        best: the costs by which no other point is both as cheap and as good, and better in one of the two.
    """

    scheme: str
    activation_bits: int
    perplexity: float
    bytes: float
    circuit: Circuit
    best: tuple[str, ...] = ()

    def cost(self, name: str) -> float:
        """Area (dot product and scaling), toggles or bytes."""
        return {"area": self.circuit.dot + self.circuit.scaling, "toggles": self.circuit.toggles, "bytes": self.bytes}[name]


def circuit(scheme: QuantScheme, stream: Stream, *, activation_bits: int = 8, lanes: int = 16) -> Circuit:
    """The costs of a scheme, in the structure whose dot product is the smallest.

    Raises:
        ConfigError: a scheme without a size of groups.
        MissingDependencyError: yosys, OpenSTA or the cells are not here.
    """

    def mapped(structure: Any) -> tuple[Design, Gates]:
        design = design_of(scheme, structure=structure, activation_bits=activation_bits, lanes=lanes)
        return design, gates(sources_of(design, "dot"), f"{design.name}_dot")

    design, dot = min(map(mapped, contenders(scheme.grid)), key=lambda found: found[1].area)
    one, scaling = (gates(sources_of(design, kind), f"{design.name}_{kind}") for kind in ("mac", "scale"))
    changes = toggles_of(design, one, stream)
    return Circuit(design.structure, dot.area / lanes, scaling.area / design.group, dot.delay, changes)


def check_schemes(schemes: Sequence[QuantScheme], activation_bits: Sequence[int]) -> None:
    """Find out before the work that a scheme has no circuit, or that a program is missing.

    Raises:
        ConfigError: a scheme without a size of groups, no scheme or one named twice, activations of 1 or more than 16 bits.
        MissingDependencyError: yosys, OpenSTA or the cells are not here.
    """
    names = [scheme.name for scheme in schemes]
    if len(set(names)) < len(names) or len(set(activation_bits)) < len(activation_bits):
        raise ConfigError("a scheme or a number of bits is named twice")
    if not schemes or not activation_bits:
        raise ConfigError("give at least one scheme and one number of activation bits")
    for scheme in schemes:
        for bits in activation_bits:
            design_of(scheme, activation_bits=bits)
    tools.require("yosys", "sta", cells=True)


def frontier(
    model: PreTrainedModel,
    protocol: Protocol,
    schemes: Sequence[QuantScheme],
    *,
    activation_bits: Sequence[int] = (8,),
    layer: str | None = None,
    kept: KeptRows | None = None,
    progress: Callable[[str], AbstractContextManager[Progress | None]] = lambda _: nullcontext(),
) -> tuple[Row, list[Point]]:
    """Full precision, and a point for every scheme and number of activation bits; weights are rounded to nearest.

    Activations are rounded for each token and group of weights, as the circuits take them.

    Args:
        layer: the linear whose products are counted; by default the one in the middle of the model.
        kept: perplexities that are taken from it if they were measured, and added if not.
        progress: makes a context for each row from its name, which gives what is called with the progress.

    Raises:
        ConfigError, MissingDependencyError: see :func:`check_schemes`; groups that do not divide a linear's columns.
        ModelError: the model has no such layer.
    """
    check_schemes(schemes, activation_bits)
    kept, key = kept or KeptRows(None), protocol.keys(model)
    weight, inputs = inputs_of(model, layer or middle_linear(model), protocol.tokens[:256])

    def row(config: PoTConfig | None, bits: int | None, label: str) -> Row:
        found = kept.get(name := key(config) + (f" {bits}" if bits else ""))
        if found is None:
            changed = partial(round_inputs, bits=bits) if bits else None
            with progress(label) as update:
                found = measure_row(model, config, protocol, update, changed)
            kept.add(name, found)
        return found

    points = []
    base = row(None, None, FULL_PRECISION)
    for scheme in schemes:
        for bits in activation_bits:
            measured = row(PoTConfig(scheme=scheme, embedding=None), bits, f"{scheme.name}, activations of {bits} bits")
            stream = layer_stream(weight, inputs, scheme, activation_bits=bits)
            costs = circuit(scheme, stream, activation_bits=bits)
            stored = measured.quantized_bits_per_weight / 8
            points.append(Point(scheme.name, bits, measured.perplexity, stored, costs))
    return base, with_best(points)


def middle_linear(model: PreTrainedModel) -> str:
    """The linear in the middle of those that would be quantized."""
    names = [target.name for target in language_plan(model, PoTConfig("pot4", embedding=None))[1].targets]
    return names[len(names) // 2]


def round_inputs(model: nn.Module, bits: int) -> None:
    """Let every packed linear round its inputs to so many bits, for each token and group."""

    def rounded(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        integers, step = in_integers(inputs[0], module.scheme.group(module.in_features), bits)
        return ((integers * step).flatten(-2).to(inputs[0].dtype), *inputs[1:])

    for module in packed_modules(model).values():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(rounded)


def with_best(points: Sequence[Point]) -> list[Point]:
    """The points, each with the costs by which it is on the frontier.

    Example:
        >>> costs = [Circuit("shift", area, 0.0, 1.0, 1.0) for area in (1.0, 2.0, 3.0)]
        >>> perplexities = (9.0, 8.0, 8.5)
        >>> points = [Point("a", 8, p, 0.5, c) for p, c in zip(perplexities, costs)]
        >>> [point.best for point in with_best(points)]
        [('area',), ('area', 'toggles', 'bytes'), ()]
    """

    def beaten(point: Point, cost: str) -> bool:
        own = (point.cost(cost), point.perplexity)
        others = [(other.cost(cost), other.perplexity) for other in points]
        return any(other[0] <= own[0] and other[1] <= own[1] and other != own for other in others)

    return [Point(**{**vars(point), "best": tuple(cost for cost in COSTS if not beaten(point, cost))}) for point in points]
