"""Lists of blocks in any module, found or named, and what they are called with.

An encoder and a decoder have a list each. They are calibrated one after another: by the time the second is recorded, the
first has its quantized weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from potq.config import Effort, PoTConfig
from potq.data.ranks import Ranks
from potq.errors import ConfigError, ModelError, listed
from potq.nn.plan import Plan
from potq.nn.weights import Place
from potq.ptq.blocks import Call, Chain, without_cache
from potq.ptq.feed import Feed

Keep = Callable[[Tensor], Tensor]
Blocks = Sequence[str] | Sequence[Sequence[str]]
"""Names of blocks in the order they run; of several lists, one after another."""


def check_settings(config: PoTConfig, effort: Effort, blocks: Blocks | None, *, given: bool) -> None:
    """Refuse what a module that is run on inputs cannot do, or cannot do without calibration.

    Raises:
        ConfigError: says what to do instead.
    """
    if config.scale_method == "fisher":
        raise ConfigError("scale_method='fisher' needs the loss of a language model; use 'mse' or 'weighted'")
    if effort.scope != "none":
        raise ConfigError(
            f"effort={effort.name!r} refines what a language model predicts, or its blocks put out, and any other "
            "module may put out anything; use 'balanced'"
        )
    if effort.weigh_tokens:
        raise ConfigError(f"effort={effort.name!r} weighs tokens by the loss of a language model; leave weigh_tokens out")
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
        output: Any = block(self.hidden.to(self.device, copy=True), *args, **kwargs)
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


def find_lists(model: nn.Module, feed: Feed, todo: Plan, blocks: Blocks | None = None) -> tuple[list[list[str]], list[str]]:
    """Lists of the names of blocks, in the order they run, and remarks on how they were found.

    Args:
        blocks: the names; None: the children of the lists of alike modules, of which at least the largest has to be a chain.
            Otherwise it is the module as a whole, whose name is ``""``.

    Raises:
        ConfigError: names that are none of the module's, or two that lie in each other.
        ModelError: blocks that were named do not follow one another, or share a weight.
        DataError: as :class:`Feed`.
    """
    lists = _require_lists(model, blocks) if blocks is not None else _alike(model, todo)
    problems = [_shared(model, names, todo) for names in lists]
    order = count()
    recorders = [_Recorder([model.get_submodule(name) for name in names], order=order) for names in lists]
    with ExitStack() as stack:
        for recorder, problem in zip(recorders, problems, strict=True):
            recorder.problem = problem
            stack.enter_context(recorder.watching(model))
        if recorders:
            feed(model)
    for names, recorder in zip(lists, recorders, strict=True):
        if blocks is not None and recorder.problem:
            why = f"cannot be calibrated one by one: {recorder.problem}; leave out blocks="
            raise ModelError(f"the blocks {listed(names, 3)} {why}")
    problem = recorders[0].problem if recorders else "no list of modules of one kind is in it"
    if problem:
        return [[""]], [f"calibrated as one block, which keeps all inputs in memory: {problem}"]
    chains = [(recorder.place, names) for recorder, names in zip(recorders, lists, strict=True) if not recorder.problem]
    return [names for _, names in sorted(chains)], []


def agreed_lists(found: tuple[list[list[str]], list[str]], ranks: Ranks) -> tuple[list[list[str]], list[str]]:
    """What all processes found by :func:`find_lists`; if inputs of theirs run a module in several ways, it is as a whole."""
    first, *others = ranks.values(found)
    if all(other == first for other in others):
        return found
    return [[""]], ["calibrated as one block, which keeps all inputs in memory: its inputs run it in several ways"]


def record_chain(model: nn.Module, feed: Feed, names: Sequence[str], keep: Keep, first: int = 0) -> Chain:
    """One of the lists of :func:`find_lists`, with its calls."""
    if list(names) == [""]:
        return _whole(model, feed, keep)
    recorder = _Recorder([model.get_submodule(name) for name in names], keep)
    with recorder.watching(model):
        feed(model)
    if recorder.problem:  # a callable that runs something else each time
        raise ModelError(f"the blocks {listed(names, 3)} cannot be calibrated one by one: {recorder.problem}")
    return Chain(list(names), recorder.blocks, recorder.calls, first)


def _require_lists(model: nn.Module, blocks: Blocks) -> list[list[str]]:
    one = [each for each in blocks if isinstance(each, str)]
    if isinstance(blocks, str) or not blocks or not all(blocks) or len(one) not in (0, len(blocks)):
        raise ConfigError(f"blocks is {blocks!r}; give a list of module names, in the order they run, or several lists")
    lists = [one] if one else [list(each) for each in blocks]
    names = [name for each in lists for name in each]
    known = dict(model.named_modules())
    for name in names:
        if name not in known or not name:
            shown = listed([each for each in known if each], 4)
            raise ConfigError(f"blocks names {name!r}, which is no module of {type(model).__name__}; it has {shown}")
        if inner := [other for other in names if other.startswith(f"{name}.")] or (names.count(name) > 1 and [name]):
            raise ConfigError(f"blocks names {inner[0]} and {name}, and a block is not part of another")
    return lists


def _alike(model: nn.Module, todo: Plan) -> list[list[str]]:
    """The children of lists of two or more modules of one class, those with the most parameters first.

    Each has something to be quantized in it. None is part of another: the larger one counts.
    """
    found: list[tuple[int, str, list[str]]] = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1 and len({type(m) for m in module}) == 1:
            size = sum(parameter.numel() for parameter in module.parameters())
            found.append((size, name, [f"{name}.{key}".lstrip(".") for key in module._modules]))
    chosen: dict[str, list[str]] = {}
    for _, name, children in sorted(found, key=lambda each: -each[0]):
        starts = tuple(f"{child}." for child in children)
        targets = any(f"{target.name}.".startswith(starts) for target in todo.targets)
        if targets and not any(_overlap(name, other) for other in chosen):
            chosen[name] = children
    return list(chosen.values())


def _overlap(name: str, other: str) -> bool:
    """Whether one of two modules lies in the other; the model itself has the name ``""``."""
    return not name or not other or f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")


def _shared(model: nn.Module, names: Sequence[str], todo: Plan) -> str:
    """What two blocks share of what is to be quantized, if anything: it would change under the block that ran before."""
    weights = [id(Place.of(model, target.name).parameter) for target in todo.targets]
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
    """Notes what blocks are called with; once they turn out to be no chain, only why.

    Without ``keep`` it only finds out whether they are one, and their ``place`` among others, by the ``order`` all share.
    """

    blocks: list[nn.Module]
    keep: Keep | None = None
    order: Iterator[int] = field(default_factory=count)
    calls: list[Call] = field(default_factory=list)
    problem: str = ""
    place: int = -1
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
        index, others = len(self._others), {name: without_cache(value) for name, value in kwargs.items()}
        hidden = args[0] if args else others.pop("hidden_states", None)
        if index >= len(self.blocks) or block is not self.blocks[index]:
            self.problem = "they do not run once each, in their order"
        elif not isinstance(hidden, Tensor):
            self.problem = "their first argument is no tensor"
        elif index and not _same(hidden, self._output):
            self.problem = f"block {index} does not get what the one before it puts out"
        else:
            self._others[block] = tuple(map(without_cache, args[1:])), others
            if not index:
                self._hidden = self.keep(hidden) if self.keep is not None else hidden
                self.place = self.place if self.place >= 0 else next(self.order)

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        self._output = output[0] if isinstance(output, tuple) else output

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        if self.problem:
            self.calls.clear()
        elif self._hidden is None or len(self._others) < len(self.blocks):
            self.problem = "some of them never run"
        elif self.keep is not None:
            self.calls.append(ModuleCall(self._hidden, self._others))


def _same(hidden: Tensor, output: Any) -> bool:
    return hidden is output or (isinstance(output, Tensor) and hidden.dtype == output.dtype and torch.equal(hidden, output))
