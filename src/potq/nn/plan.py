"""Find the weights of a model, decide each one's scheme, and put packed modules in their place.

Nothing here knows an architecture: linears, GPT-2's ``Conv1D`` and embeddings are discovered, ties are seen by identity,
and whatever has a weight matrix and is none of these is reported as skipped. Convolutions are discovered in plain modules;
those of Hugging Face models are few, small and sensitive, and stay.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from potq.config import PoTConfig, matches
from potq.errors import ConfigError, ModelError
from potq.nn.convolution import is_convolution, kernel_shape
from potq.nn.experts import Stack, stack_in, stacks
from potq.nn.packed import PackedModule, ScaledModule, pack_module
from potq.nn.packed_model import as_float_model
from potq.nn.plain import is_plain, require_replaceable
from potq.nn.refusals import require_no_adapter, require_shapes, require_weights
from potq.nn.report import SkippedModule
from potq.nn.stacked import PoTStack, holder_name, pack_stack, stack_name, unpack_stack
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight

Kind = Literal["linear", "embedding", "head", "convolution", "experts"]

_TIES = {"_tied_weights_keys", "all_tied_weights_keys"}  # transformers' notes of tied parameters


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


def embeddings(model: nn.Module, side: Literal["input", "output"]) -> nn.Module | None:
    """The model's input embedding or its head, if it has one."""
    getter = getattr(model, f"get_{side}_embeddings", None)
    try:
        module = getter() if callable(getter) else None
    except NotImplementedError:  # of two towers, say
        module = None
    return module if isinstance(module, nn.Module) else None


def quantizable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Linears, ``Conv1D`` and embeddings by name; of a plain module convolutions, too."""
    plain = is_plain(model)
    return {
        name: module
        for name, module in model.named_modules()
        if _is_quantizable(module) or (plain and is_convolution(module))
    }


def quantizable_weights(model: nn.Module) -> list[str]:
    """Names of all that may be quantized, in module order: :func:`quantizable_modules`, and stacks of experts' matrices."""
    modules, found = quantizable_modules(model), stacks(model)
    of_module: dict[str, list[str]] = {}
    for name in found:
        of_module.setdefault(name.rpartition(".")[0], []).append(name)
    names = (name for name, _ in model.named_modules())
    return [each for name in names for each in ([name] if name in modules else of_module.get(name, []))]


class Place(NamedTuple):
    """Where a weight in full precision is.

    Attributes:
        parameter: in its module.
        matrix: what a tensor that is stored there is as a matrix.
        stored: the inverse, in the parameter's dtype.
    """

    parameter: nn.Parameter
    matrix: Callable[[Tensor], Tensor]
    stored: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, model: nn.Module, name: str) -> Place:
        """Of the weight that a plan of ``model`` calls ``name``."""
        parent, _, key = name.rpartition(".")
        holder = model.get_submodule(parent)
        if key in holder._parameters:
            stack = stack_in(holder, key)
            dtype = stack.parameter.dtype
            return cls(stack.parameter, stack.as_matrix, lambda matrix: stack.as_stored(matrix).to(dtype).contiguous())
        module = model.get_submodule(name)
        parameter: Any = _weight(module)
        return cls(parameter, partial(as_matrix, module), lambda matrix: as_weight(module, matrix).to(parameter.dtype))


def matrix_of(model: nn.Module, name: str) -> Tensor:
    """The weight in full precision that a plan of ``model`` calls ``name``, as a matrix."""
    place = Place.of(model, name)
    return place.matrix(place.parameter.detach())


def find_stack(model: nn.Module, name: str) -> Stack:
    """The stack of experts' matrices that ``model`` calls ``name``."""
    parent, _, key = name.rpartition(".")
    return stack_in(model.get_submodule(parent), key)


def linear_weight(module: nn.Module) -> Tensor:
    """The weight of a linear, ``Conv1D``, embedding or convolution as ``(out, in)``."""
    return as_matrix(module, _weight(module))


def as_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """``weight``, which belongs to ``module``, as ``(out, in)``: GPT-2's ``Conv1D`` stores it transposed."""
    if is_convolution(module):
        return weight.flatten(1)
    return weight.t() if _is_conv1d(module) else weight


def as_weight(module: nn.Module, matrix: Tensor) -> Tensor:
    """The inverse of :func:`as_matrix`: ``matrix`` ``(out, in)`` as ``module`` stores its weight."""
    if is_convolution(module):
        return matrix.reshape(kernel_shape(module))
    return matrix.t() if _is_conv1d(module) else matrix


def install(model: nn.Module, target: WeightPlan, quantized: QuantizedWeight) -> None:
    """Put ``quantized`` in place of ``target``'s weight and of the weights tied to it."""
    if target.experts:
        pack_stack(find_stack(model, target.name), quantized, target.name)
        return
    owner = pack_module(model.get_submodule(target.name), quantized, target.name)
    _replace(model, target.name, owner)
    for name in target.tied:
        _replace(model, name, pack_module(model.get_submodule(name), owner, name))
    if target.tied:
        _forget_ties(model)


def meta_model(model: nn.Module) -> nn.Module:
    """The float model of the same config, which has one of transformers', without weights: on the meta device."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    kind: Any = type(model)
    with torch.device("meta"):
        made: nn.Module = kind(config)
    return made


@torch.no_grad()
def unpack(model: nn.Module, dtype: torch.dtype) -> None:
    """Put float modules, those that the architecture has, in place of packed ones.

    Raises:
        ModelError: the model has an adapter, which packed modules are part of, or is not in memory.
    """
    require_no_adapter(model)
    require_weights(model)
    weights: dict[PackedModule, nn.Parameter] = {}
    float_model = meta_model(model)
    for name, module in packed_modules(model).items():
        if isinstance(module, PoTStack):
            parent, _, key = name.rpartition(".")
            unpack_stack(model.get_submodule(parent), key, dtype)
            continue
        plain, owner = float_model.get_submodule(name), module.tied_to or module
        if owner not in weights:
            weights[owner] = nn.Parameter(as_weight(plain, owner.quantized.dequantize()).to(dtype).contiguous())
        plain.weight = weights[owner]
        if getattr(plain, "bias", None) is not None:
            plain.bias = module.bias
        plain._buffers |= {key: value for key, value in module._buffers.items() if not key.startswith("weight_")}
        _replace(model, name, plain.train(module.training))
    for name, module in model.named_modules():
        for attribute in _TIES & vars(module).keys():
            setattr(module, attribute, getattr(float_model.get_submodule(name), attribute))
    as_float_model(model)


def packed_modules(model: nn.Module) -> dict[str, PackedModule]:
    """Every packed module by the name of its weight's plan, tied ones included."""
    return {
        stack_name(name) if isinstance(module, PoTStack) else name: module
        for name, module in model.named_modules()
        if isinstance(module, PackedModule)
    }


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards each in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def is_tied(model: nn.Module) -> bool:
    """Whether the head shares its weight with an embedding, packed or not; models without a head have nothing to untie.

    That need not be the input embedding: encoder-decoders tie the decoder's.
    """
    head = embeddings(model, "output")
    if head is None or embeddings(model, "input") is None:
        return True
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return any(_owner(table) is _owner(head) for table in tables)


def _owner(module: nn.Module) -> object:
    """What two modules that share a weight have in common."""
    return (module.tied_to or module) if isinstance(module, PackedModule) else module.weight


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of the model's state dict, shared tensors counted once; meta tensors count as if they were there."""
    return sum({_storage(tensor): tensor.nbytes for tensor in _tensors(model)}.values())


def weight_count(model: nn.Module) -> int:
    """Weights of the model: a packed matrix's, not its codes and scales, and every other stored tensor's, each once."""
    packed = [module.quantized for module in packed_modules(model).values() if module.tied_to is None]
    parts = {_storage(tensor) for weight in packed for tensor in weight.tensors().values()}
    others = {_storage(tensor): tensor.numel() for tensor in _tensors(model) if _storage(tensor) not in parts}
    total: int = sum(others.values()) + sum(math.prod(weight.shape) for weight in packed)
    return total


def _tensors(model: nn.Module) -> list[Tensor]:
    """Of the state dict, which may hold more than tensors."""
    return [tensor for tensor in model.state_dict().values() if isinstance(tensor, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def vocabulary(model: nn.Module) -> int | None:
    """How many token ids the model knows, if its config says so."""
    return _of_text(model, "vocab_size")


def longest_text(model: nn.Module) -> int | None:
    """How many tokens the model has positions for, if its config says so."""
    return _of_text(model, "max_position_embeddings")


def _of_text(model: nn.Module, key: str) -> int | None:
    text_config = getattr(model.config, "get_text_config", lambda: model.config)()
    return getattr(text_config, key, None)


def _weight(module: nn.Module) -> Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(f"{type(module).__name__} has no weight tensor")
    return weight


def _is_quantizable(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Embedding)) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    return any(c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in type(module).__mro__)


def _tie_groups(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Quantizable modules in module order, those that share a weight together.

    A tie is one parameter in two modules. On the meta device transformers has not tied anything yet; there its own list of
    ties (tied name -> source name) is what counts.
    """
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    groups: dict[int | str, list[tuple[str, nn.Module]]] = {}
    for name, module in quantizable_modules(model).items():
        key = f"{name}.weight"
        untied = _weight(module).is_meta and not is_plain(model)
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
    sizes = [_weight(group[0][1]).nbytes] + [0] * (len(group) - 1)
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
    weight = _weight(module)
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


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    old = model.get_submodule(name)
    if old is module:  # it changed its class
        return
    for parent in model.modules():  # two may have the same child
        for child, found in parent._modules.items():
            if found is old:
                parent._modules[child] = module


def _forget_ties(model: nn.Module) -> None:
    """Drop transformers' tie bookkeeping for packed weights: the tie is now in the modules, not in a parameter."""
    for submodule in model.modules():
        for attribute in _TIES:
            ties = getattr(submodule, attribute, None)
            if isinstance(ties, dict):
                kept = {key: value for key, value in ties.items() if not _names_packed(submodule, key)}
                setattr(submodule, attribute, kept)


def _names_packed(model: nn.Module, key: str) -> bool:
    name, _, parameter = key.rpartition(".")
    try:
        return parameter == "weight" and isinstance(model.get_submodule(name), PackedModule)
    except AttributeError:
        return False
