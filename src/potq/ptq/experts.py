"""Experts one by one: within a block that is calibrated, each matrix of a stack is a linear of its own.

So an expert's second moments are those of the tokens that are sent to it. One that no token reaches is rounded to nearest,
as any such layer is. Afterwards the matrices are one weight again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from potq.nn.plan import WeightPlan, find_stack
from potq.nn.stacked import holder_name, unstacked
from potq.numerics.tensor import QuantizedWeight


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


def joined(weights: Sequence[QuantizedWeight], labels: Sequence[str]) -> tuple[QuantizedWeight, str]:
    """The weights of all experts as one, and what was done: ``gptq+descent (experts 2, 6-9: rtn/mse (...))``, say."""
    of: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        of.setdefault(label, []).append(number)
    usual = min(of, key=lambda label: (label.endswith(")"), -len(of[label])))
    rest = "; ".join(f"experts {ranges(numbers)}: {label}" for label, numbers in of.items() if label != usual)
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
