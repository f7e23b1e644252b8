"""Decide which weights of a model are quantized, and each one's scheme.

Nothing here knows an architecture: ties are seen by identity, and whatever has a weight matrix and is none that is known
(:mod:`potq.nn.weights`) is reported as skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from potq.config import PoTConfig, matches
from potq.errors import ConfigError, ModelError
from potq.nn.convolution import is_convolution
from potq.nn.experts import Stack, stacks
from potq.nn.packed import PackedModule, ScaledModule
from potq.nn.plain import is_plain, require_replaceable
from potq.nn.properties import embeddings
from potq.nn.refusals import require_no_adapter, require_shapes
from potq.nn.report import SkippedModule
from potq.nn.stacked import holder_name
from potq.nn.weights import linear_weight, quantizable_modules, quantizable_weights, weight_of
from potq.numerics.scheme import QuantScheme

Kind = Literal["linear", "embedding", "head", "convolution", "experts"]


@dataclass(frozen=True)
class WeightPlan:
    """A weight to be quantized: the module that owns it, the modules tied to it, its scheme.

    ``shape`` is ``(out, in)`` for linears, ``(rows, dim)`` for embeddings, ``(out, all else)`` for convolutions,
    ``(experts * out, in)`` for a stack of experts' matrices, whose ``name`` is its parameter's. ``tied`` names the other
    modules.
    """

    name: str
    kind: Kind
    shape: tuple[int, int]
    scheme: QuantScheme
    tied: tuple[str, ...] = ()
    experts: int = 0  # whose matrices are stacked

    @property
    def holder(self) -> str:
        """The module that holds the weight once it is packed."""
        return holder_name(self.name) if self.experts else self.name

    def parameter_of(self, name: str) -> str:
        """What the weight is called as long as it is not packed, in the module ``name``, one of ``names``."""
        return name if self.experts else f"{name}.weight"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """For people: ``(experts, out, in)`` for a stack."""
        return (self.experts, self.shape[0] // self.experts, self.shape[1]) if self.experts else self.shape

    @property
    def names(self) -> tuple[str, ...]:
        """Every module that reads this weight, its owner first."""
        return (self.name, *self.tied)

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Plan:
    """Every target of a model in module order, and what is left out and why."""

    targets: list[WeightPlan]
    skipped: list[SkippedModule]


def plan(model: nn.Module, config: PoTConfig) -> Plan:
    """Decide what happens to every weight of ``model``; works on the meta device too.

    This is ``config`` to the letter, as a checkpoint's is read. What is quantized anew goes through
    ``potq.nn.language.language_plan``.

    Raises:
        ConfigError: a pattern matches no module, or tied modules would get different schemes.
        ModelError: the model is quantized already, has an adapter, or nothing is left to quantize.
    """
    require_no_adapter(model)
    require_shapes(model)
    if is_plain(model):
        require_replaceable(model)
    if any(isinstance(module, PackedModule) for module in model.modules()):
        raise ModelError("the model is quantized already; load the full-precision one")
    if any(isinstance(module, ScaledModule) for module in model.modules()):
        raise ModelError("the model is prepared for training; convert it (potq.qat.convert), or load the full-precision one")
    order = {name: place for place, name in enumerate(quantizable_weights(model))}
    _check_patterns(config, list(order))
    targets: list[WeightPlan] = []
    skipped = _unhandled(model)
    unsaved = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    for group in _tie_groups(model):
        choice = _choose(group, config, head=embeddings(model, "output"))
        if unsaved.intersection(f"{name}.weight" for name, _ in group):
            choice = "its weight is computed, and no checkpoint holds it"
        if isinstance(choice, WeightPlan):
            targets.append(choice)
        else:
            skipped.extend(_skip(group, choice))
    for name, stack in stacks(model).items():
        planned = _choose_stack(name, stack, config)
        if isinstance(planned, WeightPlan):
            targets.append(planned)
        else:
            skipped.append(SkippedModule(name=name, reason=planned, nbytes=stack.parameter.nbytes))
    targets.sort(key=lambda target: order[target.name])
    if not targets:
        reasons = "; ".join(sorted({f"{s.name}: {s.reason}" for s in skipped})[:3])
        raise ModelError(f"nothing to quantize: {reasons or 'the model has no linear or embedding weights'}")
    return Plan(targets, skipped)


def narrowed(model: nn.Module, config: PoTConfig, prefix: str) -> PoTConfig:
    """``config`` for ``model``, a part of what it was made for, whose modules begin with ``prefix`` there.

    Patterns of modules that are not in this part are dropped.
    """
    names = quantizable_weights(model)

    def narrow(pattern: str) -> str:
        found = [name for name in names if matches(pattern, prefix + name)]
        here = [name for name in names if matches(pattern, name)]
        return pattern if found and found == here else "|".join(map(re.escape, found))

    ignore = tuple(pattern for pattern in map(narrow, config.ignore) if pattern)
    targets = {narrow(pattern): scheme for pattern, scheme in config.targets.items()}
    targets.pop("", None)
    return config.model_copy(update={"ignore": ignore, "targets": targets})


def _tie_groups(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Quantizable modules in module order, those that share a weight together.

    A tie is one parameter in two modules. On the meta device transformers has not tied anything yet; there its own list of
    ties (tied name -> source name) is what counts.
    """
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    groups: dict[int | str, list[tuple[str, nn.Module]]] = {}
    for name, module in quantizable_modules(model).items():
        key = f"{name}.weight"
        untied = weight_of(module).is_meta and not is_plain(model)
        own = id(module._parameters.get("weight", module))  # a weight that is computed is another one every time
        groups.setdefault(ties.get(key, key) if untied else own, []).append((name, module))
    return list(groups.values())


def _choose(group: list[tuple[str, nn.Module]], config: PoTConfig, head: nn.Module | None) -> WeightPlan | str:
    """The target that a tie group makes, or the reason to skip it."""
    names = [name for name, _ in group]
    ignored = [name for name in names if any(matches(pattern, name) for pattern in config.ignore)]
    if ignored:
        return "ignored by config" if len(names) == 1 else f"ignored by config through {ignored[0]}; they share one weight"
    owner = group[0][1]
    if reason := _unfit(owner):
        return reason
    if head is None and any(isinstance(module, nn.Embedding) for _, module in group):  # a plain module does not say
        head = next((module for _, module in group if isinstance(module, nn.Linear)), None)
    schemes = {name: _scheme(name, _kind(module, head), config) for name, module in group}
    if len(set(schemes.values())) > 1:
        found = ", ".join(f"{name}: {scheme.name if scheme else None}" for name, scheme in schemes.items())
        raise ConfigError(f"{' and '.join(names)} are tied and share one weight; give them the same scheme (found {found})")
    scheme = schemes[names[0]]
    if scheme is None:
        return "embedding=None leaves it in full precision"
    kinds = {is_convolution(module) for _, module in group}
    if len(kinds) > 1:
        return "a convolution and another layer share it"
    out_features, in_features = linear_weight(owner).shape
    return WeightPlan(names[0], _kind(owner, head), (out_features, in_features), scheme, tuple(names[1:]))


def _choose_stack(name: str, stack: Stack, config: PoTConfig) -> WeightPlan | str:
    """The target that a stack of experts' matrices makes, or the reason to skip it."""
    if any(matches(pattern, name) for pattern in config.ignore):
        return "ignored by config"
    if config.expert_stacks is False:
        return "experts are left in full precision here"
    if reason := _no_float(stack.parameter):
        return reason
    scheme = _scheme(name, "experts", config)
    assert scheme is not None  # only embeddings may have none
    experts, rows, columns = stack.shape
    return WeightPlan(name, "experts", (experts * rows, columns), scheme, experts=experts)


def _skip(group: list[tuple[str, nn.Module]], reason: str) -> list[SkippedModule]:
    """Entries for the modules of a tie group; the bytes of their one weight stand with the first."""
    sizes = [weight_of(group[0][1]).nbytes] + [0] * (len(group) - 1)
    return [SkippedModule(name=name, reason=reason, nbytes=size) for (name, _), size in zip(group, sizes, strict=True)]


def _kind(module: nn.Module, head: nn.Module | None) -> Kind:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if is_convolution(module):
        return "convolution"
    return "head" if module is head else "linear"


def _scheme(name: str, kind: Kind, config: PoTConfig) -> QuantScheme | None:
    for pattern, scheme in config.targets.items():
        if matches(pattern, name):
            return scheme
    return config.embedding if kind in ("embedding", "head") else config.scheme


def _unfit(module: nn.Module) -> str | None:
    """Why a linear or embedding cannot be quantized, if it cannot."""
    weight = weight_of(module)
    if "weight" not in module._parameters:
        return "its weight is computed anew at every use (weight_norm or another parametrization)"
    if reason := _no_float(weight):
        return reason
    if (weight.ndim != 2 and not is_convolution(module)) or not weight.numel():
        return f"its weight has shape {tuple(weight.shape)}"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "nn.Embedding(max_norm=...) rewrites its rows at look-up"
    return None


def _no_float(weight: Tensor) -> str | None:
    if weight.is_floating_point() and weight.itemsize > 1:
        return None
    return f"its weight is {weight.dtype}, not a full-precision float"


def _unhandled(model: nn.Module) -> list[SkippedModule]:
    """Parameters with two dimensions or more in modules of other kinds (routers, recurrent layers)."""
    handled, stacked = quantizable_modules(model), stacks(model)
    return [
        SkippedModule(
            name=f"{name}.{key}".lstrip("."),
            reason=f"{type(module).__name__} with a {'x'.join(map(str, tensor.shape))} weight is not supported",
            nbytes=tensor.nbytes,
        )
        for name, module in model.named_modules()
        if name not in handled
        for key, tensor in module.named_parameters(recurse=False)
        if tensor.ndim >= 2 and f"{name}.{key}".lstrip(".") not in stacked
    ]


def _check_patterns(config: PoTConfig, names: list[str]) -> None:
    for pattern in (*config.ignore, *config.targets):
        if not any(matches(pattern, name) for name in names):
            shown = ", ".join(names[:2] + names[-2:])
            raise ConfigError(f"pattern {pattern!r} matches no module; the modules are named like {shown}")
