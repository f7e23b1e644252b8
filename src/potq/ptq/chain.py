"""The blocks of a plain module, found or named, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from potq.config import Effort, PoTConfig
from potq.errors import ConfigError, ModelError, listed
from potq.nn.plan import Plan
from potq.ptq.blocks import Call, Chain
from potq.ptq.feed import Feed

Keep = Callable[[Tensor], Tensor]


def check_settings(config: PoTConfig, effort: Effort, blocks: Sequence[str] | None, *, given: bool) -> None:
    """Refuse what a plain module cannot do, or cannot do without calibration.

    Raises:
        ConfigError: says what to do instead.
    """
    if config.scale_method == "fisher":
        raise ConfigError("scale_method='fisher' needs the loss of a language model; use 'mse' or 'weighted'")
    if effort.scope != "none":
        raise ConfigError(
            f"effort={effort.name!r} refines what a language model predicts, or its blocks put out, and a plain module may "
            "put out anything; use 'balanced'"
        )
    if not given and (effort.calibrated or config.scale_method == "weighted"):
        what = f"effort={effort.name!r}" if effort.calibrated else "scale_method='weighted'"
        raise ConfigError(f"{what} needs calibration: a list of inputs, or a callable that runs the module")
    if blocks is not None and not effort.calibrated:
        raise ConfigError(f"blocks= changes nothing with effort={effort.name!r}, which calibrates none")


@dataclass(frozen=True)
class ModuleCall(Call):
    """A pass through a plain module's blocks; they get copies, for they may write into what they are given."""

    text: bool = False

    def __call__(self, block: nn.Module) -> Tensor:
        args, kwargs = _copied(self.others[block])
        output: Any = block(self.hidden.clone(), *args, **kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result


@dataclass(frozen=True)
class WholeCall(ModuleCall):
    """A pass through a plain module as its own only block: ``hidden`` is any of its inputs."""

    def __call__(self, block: nn.Module) -> Tensor:
        args, kwargs = _copied(self.others[block])
        result: Tensor = block(*args, **kwargs)
        return result


def _copied(value: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, value)


def find_chain(model: nn.Module, feed: Feed, todo: Plan, names: Sequence[str] | None, keep: Keep) -> tuple[Chain, list[str]]:
    """The blocks of ``model`` with their calls, and remarks on how they were found.

    Args:
        names: of the blocks, in order; None: the children of the largest list of alike ones, or else the module as a whole.

    Raises:
        ConfigError: names that are none of the module's, or two that lie in each other.
        ModelError: blocks that were named do not follow one another, or share a weight.
        DataError: as :class:`Feed`.
    """
    given = names is not None
    names = _require_blocks(model, names) if names is not None else _largest(model)
    problem = "" if names else "no list of modules of one kind is in it"
    if names and not (problem := _shared(model, names, todo)):
        recorder = _Recorder([model.get_submodule(name) for name in names], keep)
        with recorder.watching(model):
            feed(model)
        if not (problem := recorder.problem):
            return Chain(list(names), recorder.blocks, recorder.calls), []
    if given:
        raise ModelError(f"the blocks {listed(names, 3)} cannot be calibrated one by one: {problem}; leave out blocks=")
    return _whole(model, feed, keep), [f"calibrated as one block, which keeps all inputs in memory: {problem}"]


def _require_blocks(model: nn.Module, names: Sequence[str]) -> list[str]:
    if isinstance(names, str) or not names:
        raise ConfigError(f"blocks is {names!r}; give a list of module names, in the order they run")
    known = dict(model.named_modules())
    for name in names:
        if name not in known or not name:
            shown = listed([each for each in known if each], 4)
            raise ConfigError(f"blocks names {name!r}, which is no module of {type(model).__name__}; it has {shown}")
        if inner := [other for other in names if other.startswith(f"{name}.")] or (list(names).count(name) > 1 and [name]):
            raise ConfigError(f"blocks names {inner[0]} and {name}, and a block is not part of another")
    return list(names)


def _largest(model: nn.Module) -> list[str]:
    """Names of the children of the list with the most parameters, of those with two or more children, all of one class."""
    found: list[tuple[int, list[str]]] = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1 and len({type(m) for m in module}) == 1:
            size = sum(parameter.numel() for parameter in module.parameters())
            found.append((size, [f"{name}.{key}".lstrip(".") for key in module._modules]))
    return max(found, key=lambda each: each[0])[1] if found else []


def _shared(model: nn.Module, names: Sequence[str], todo: Plan) -> str:
    """What two blocks share of what is to be quantized, if anything: it would change under the block that ran before."""
    weights = [id(model.get_submodule(target.name)._parameters["weight"]) for target in todo.targets]
    seen: dict[int, str] = {}
    for name in names:
        for parameter in {id(parameter) for parameter in model.get_submodule(name).parameters()}:
            if parameter in weights and seen.setdefault(parameter, name) != name:
                return f"{seen[parameter]} and {name} share a weight"
    return ""


def _whole(model: nn.Module, feed: Feed, keep: Keep) -> Chain:
    calls: list[Call] = []
    begun: list[Call] = []  # a pass that fails, in a callable that goes on, never ends

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept = tree_map_only(Tensor, keep, (args, kwargs))
        first = next((leaf for leaf in tree_leaves(kept) if isinstance(leaf, Tensor)), torch.empty(0))
        begun[:] = [WholeCall(first, {model: kept})]

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(lambda *_: calls.extend(begun)).remove)
        feed(model)
    return Chain([""], [model], calls)


@dataclass
class _Recorder:
    """Notes what blocks are called with; once they turn out to be no chain, only why."""

    blocks: list[nn.Module]
    keep: Keep
    calls: list[Call] = field(default_factory=list)
    problem: str = ""
    _hidden: Tensor | None = None
    _output: Any = None
    _others: dict[nn.Module, Any] = field(default_factory=dict)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(model.register_forward_pre_hook(self._begin).remove)
            stack.callback(model.register_forward_hook(self._end).remove)
            for block in self.blocks:
                stack.callback(block.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                stack.callback(block.register_forward_hook(self._leave).remove)
            yield

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._hidden, self._output, self._others = None, None, {}

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.problem:
            return
        index = len(self._others)
        if index >= len(self.blocks) or block is not self.blocks[index]:
            self.problem = "they do not run once each, in their order"
        elif not args or not isinstance(args[0], Tensor):
            self.problem = "their first argument is no tensor"
        elif index and not _same(args[0], self._output):
            self.problem = f"block {index} does not get what the one before it puts out"
        else:
            self._others[block] = args[1:], kwargs
            if not index:
                self._hidden = self.keep(args[0])

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        self._output = output[0] if isinstance(output, tuple) else output

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        if self.problem:
            self.calls.clear()
        elif self._hidden is None or len(self._others) < len(self.blocks):
            self.problem = "some of them never run"
        else:
            self.calls.append(ModuleCall(self._hidden, self._others))


def _same(hidden: Tensor, output: Any) -> bool:
    return hidden is output or (isinstance(output, Tensor) and hidden.dtype == output.dtype and torch.equal(hidden, output))
