"""The calibration of a plain module: inputs that the user gives, or a callable that runs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from potq.data.ranks import Ranks
from potq.errors import ConfigError, DataError


@dataclass(frozen=True)
class Feed:
    """Runs a module on its calibration: on inputs, one after another, or by a callable of the user's.

    Attributes:
        inputs: a tensor, a tuple (or list) of arguments or a mapping of keyword arguments each; None: there is the callable.
    """

    inputs: Sequence[Any] | None
    run: Callable[[nn.Module], object] | None = None

    @classmethod
    def of(cls, calibration: Any) -> Feed:
        """What the user gave.

        Raises:
            DataError: nothing in it, or an item that a module cannot be called with.
        """
        if isinstance(calibration, Tensor):
            raise DataError("calibration is one tensor; give a list of inputs, [tensor] if it is one")
        if not isinstance(calibration, Iterable):
            if not callable(calibration):
                raise DataError(
                    f"calibration is {type(calibration).__name__}; give inputs, or a callable that runs the module"
                )
            return cls(None, calibration)
        inputs = list(calibration)
        for index, item in enumerate(inputs):
            if not isinstance(item, (Tensor, tuple, list, Mapping)):
                raise DataError(
                    f"calibration input {index} is {type(item).__name__}; each is a tensor, a tuple of arguments, or a dict "
                    "of keyword arguments"
                )
        if not inputs:
            raise DataError("calibration is empty; give at least one input")
        return cls(inputs)

    def first(self, count: int) -> Feed:
        """The first inputs; a callable is not to be divided."""
        return Feed(None if self.inputs is None else self.inputs[:count], self.run)

    def share(self, ranks: Ranks) -> Feed:
        """This process's inputs."""
        return Feed(None if self.inputs is None else ranks.share(self.inputs), self.run)

    def tensors(self) -> list[Tensor]:
        """Of all inputs.

        Raises:
            ConfigError: there is a callable, whose inputs nobody knows.
        """
        if self.inputs is None:
            raise ConfigError(
                "work_folder needs calibration as inputs: what a callable runs cannot be compared with a later run"
            )
        return [leaf for leaf in tree_leaves(list(map(_plain, self.inputs))) if isinstance(leaf, Tensor)]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """Run ``model`` on all of it.

        Raises:
            DataError: the module cannot be run on an input (which one, and of what shapes), the callable raised, or it never
                ran the module.
        """
        if self.inputs is not None:
            device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)  # None: as it is
            for index, item in enumerate(self.inputs):
                self._run_input(model, index, tree_map_only(Tensor, lambda tensor: tensor.to(device), _plain(item)))
        if self.run is not None:
            self._run_callable(model, self.run)

    def _run_input(self, model: nn.Module, index: int, item: Any) -> None:
        try:
            if isinstance(item, dict):
                model(**item)
            else:
                model(*(item if isinstance(item, (tuple, list)) else (item,)))
        except Exception as error:
            shapes = ", ".join(f"{tuple(leaf.shape)}" for leaf in tree_leaves(item) if isinstance(leaf, Tensor))
            raise DataError(
                f"{type(model).__name__} does not run on calibration input {index} (of shapes {shapes}): "
                f"{type(error).__name__}: {error}"
            ) from error

    def _run_callable(self, model: nn.Module, run: Callable[[nn.Module], object]) -> None:
        passes = 0

        def count(*_: Any) -> None:
            nonlocal passes
            passes += 1

        handle = model.register_forward_hook(count)
        try:
            result = run(model)
        except Exception as error:
            raise DataError(f"the calibration callable raised {type(error).__name__}: {error}") from error
        finally:
            handle.remove()
        if not passes:
            why = "; it returned a generator, of which nothing ran" if inspect.isgenerator(result) else ""
            raise DataError(f"the calibration callable never ran the module, as model(input) does{why}")


def _plain(item: Any) -> Any:
    """Mappings of other kinds (of a tokenizer, say) as a dict."""
    return dict(item) if isinstance(item, Mapping) else item
