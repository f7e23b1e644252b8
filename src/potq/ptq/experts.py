"""Experts one by one: within a block that is calibrated, each matrix of a stack is a linear of its own.

So an expert's second moments are those of the tokens that are sent to it. One that no token reaches is rounded to nearest,
as any such layer is. Afterwards the matrices are one weight again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from potq.data.ranks import ALONE, Ranks
from potq.nn.experts import PREFIX
from potq.nn.parts import bring
from potq.nn.plan import WeightPlan
from potq.nn.stacked import holder_name, unstacked
from potq.nn.weights import find_stack, linear_weight
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.blocks import HiddenStates, second_moments

MOMENT_BYTES = 1 << 30  # of second moments of experts, taken in one pass


@dataclass(frozen=True)
class Experts:
    """The targets of a block while its stacks are taken apart.

    Attributes:
        apart: every target by its name in the block, a linear for each expert in place of a stack.
        stacks: names of the stacks, each with those of its experts.
        whole: stacks with one scale for all, which cannot be taken apart.
    """

    apart: dict[str, WeightPlan]
    stacks: dict[str, list[str]]
    whole: list[str]


@contextmanager
def experts_apart(block: nn.Module, inside: dict[str, WeightPlan]) -> Iterator[Experts]:
    """A linear for each expert in place of every stack among ``inside``, the targets by their names in ``block``."""
    found = Experts({}, {}, [])
    for name, target in inside.items():
        if not target.experts:
            found.apart[name] = target
        elif target.scheme.group_size == "tensor":
            found.whole.append(name)
        else:
            found.stacks[name] = [f"{holder_name(name)}.{number}" for number in range(target.experts)]
            shape = target.shape[0] // target.experts, target.shape[1]
            for number, each in enumerate(found.stacks[name]):
                found.apart[each] = WeightPlan(f"{target.holder}.{number}", "linear", shape, target.scheme)
    with unstacked({name: find_stack(block, name) for name in found.stacks}):
        yield found


@contextmanager
def watched(model: nn.Module, names: Iterable[str], hook: Callable[[str, int], Callable[..., None]]) -> Iterator[None]:
    """While what has the stacks ``names`` runs, each expert is a linear, with the forward hook ``hook(name, number)``.

    Not before: of a model that is read in parts the stacks are in memory only then.
    """
    places: dict[str, list[str]] = {}
    for name in names:
        places.setdefault(name.rpartition(".")[0].rpartition(".")[0], []).append(name)
    with ExitStack() as handles:
        for place, inside in places.items():
            module, here = model.get_submodule(place), handles.enter_context(ExitStack())
            begin = partial(_take_apart, model, inside, hook, here)
            handles.callback(module.register_forward_pre_hook(lambda *_, begin=begin: begin()).remove)
            end = module.register_forward_hook(lambda *_, here=here: here.close(), always_call=True)
            handles.callback(end.remove)
        yield


def _take_apart(
    model: nn.Module, names: Sequence[str], hook: Callable[[str, int], Callable[..., None]], here: ExitStack
) -> None:
    """Stacks of one place, until ``here`` is closed; the linears are gone then, and their hooks with them."""
    for name in names:
        bring(model, name)
    here.enter_context(unstacked({name: find_stack(model, name) for name in names}))
    for name in names:
        for number, linear in enumerate(model.get_submodule(holder_name(name)).children()):
            linear.register_forward_hook(hook(name, number), with_kwargs=True)


class Moments:
    """The second moments of a block's layers, one after another; those of several experts are taken in one pass, as are
    those of layers that read the same but weigh its tokens differently.
    """

    def __init__(
        self,
        block: nn.Module,
        groups: Sequence[Sequence[str]],
        seen: HiddenStates,
        prefix: str,
        ranks: Ranks = ALONE,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._block, self._seen, self._prefix, self._ranks, self._weights = block, seen, prefix, ranks, weights
        weighed = [name.removeprefix(prefix) for name in weights or ()]
        self._passes = {name: names for names in passes(block, groups, weighed) for name in names}
        self._ready: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        """Of the inputs of layer ``name``, float32 ``(in, in)``.

        Raises:
            ModelError: as :func:`~potq.ptq.blocks.second_moments`.
        """
        if name not in self._ready:
            names = self._passes.get(name, [name])
            found = second_moments(self._block, names, self._seen, self._prefix, self._ranks, self._weights)
            self._ready = dict(zip(names, found, strict=True))
        return self._ready.pop(name)


def together(groups: Sequence[list[str]]) -> list[list[str]]:
    """Layers that share inputs, in the order they run, but the experts of a stack follow one another.

    A model runs all layers of an expert, then those of the next. No expert's input depends on another expert.
    """
    firsts: dict[str, int] = {}
    for place, group in enumerate(groups):
        firsts.setdefault(_stack_of(group[0]), place)
    return sorted(groups, key=lambda group: firsts[_stack_of(group[0])])


def passes(block: nn.Module, groups: Sequence[Sequence[str]], weighed: Collection[str] = ()) -> list[list[str]]:
    """The layers whose second moments are taken at once together, as many as fit in a gigabyte: experts of a stack, and a
    group of which some are ``weighed``. Of any other of the ``groups``, which share an input, it is the first layer alone.
    """
    found: list[list[str]] = []
    for group in groups:
        name, *others = group
        inputs = linear_weight(block.get_submodule(name)).shape[1]
        stack, last, most = _stack_of(name), found[-1] if found else [], max(1, MOMENT_BYTES // (4 * inputs**2))
        if stack != name and not others and last and _stack_of(last[0]) == stack and len(last) < most:
            last.append(name)
        else:
            apart = list(group) if is_weighed(group, weighed) else [name]
            found += [apart[start : start + most] for start in range(0, len(apart), most)]
    return found


def is_weighed(group: Iterable[str], weighed: Collection[str]) -> bool:
    """Whether each layer of a ``group`` that shares an input has second moments of its own."""
    return any(name in weighed for name in group)


def _stack_of(name: str) -> str:
    """The holder of the stack that an expert's linear is in; ``name`` itself for any other layer."""
    parent = name.rpartition(".")[0]
    return parent if parent.rpartition(".")[2].startswith(PREFIX) else name


def joined(weights: Sequence[QuantizedWeight], labels: Sequence[str]) -> tuple[QuantizedWeight, str]:
    """The weights of all experts as one, and what was done: ``gptq+descent (experts 2, 6-9: rtn/mse (...))``, say."""
    of: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        of.setdefault(label, []).append(number)
    usual = min(of, key=lambda label: (label.endswith(")"), -len(of[label])))
    rest = "; ".join(
        f"expert{'s' * (len(numbers) > 1)} {ranges(numbers)}: {label}" for label, numbers in of.items() if label != usual
    )
    return QuantizedWeight.joined(weights), f"{usual} ({rest})" if rest else usual


def ranges(numbers: Sequence[int]) -> str:
    """Ascending ``numbers`` for people.

    Example:
        >>> ranges([2, 6, 7, 8, 9])
        '2, 6-9'
    """
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
