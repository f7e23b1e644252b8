"""A model of which one part is in memory at a time: a block, or what embeds and predicts tokens.

A part is read when it runs, or when somebody asks for it by :func:`bring`; the one before is put away, on the meta device.
Everything else (norms, tables of frequencies) is in memory all the time. Nothing here knows where parts are read from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from potq.errors import ModelError

_ATTRIBUTE = "_potq_parts"
_STREAMED = "the model was loaded with stream=True, and has one part of it in memory"
_REFUSED = {
    "_apply": f"{_STREAMED}: to move or cast it would not last; name a dtype when it is loaded: potq.load(folder, "
    "stream=True, dtype='bfloat16')",
    "save_pretrained": f"{_STREAMED}: it cannot be saved before it is quantized; copy its folder",
}
"""Methods that would lose something, until the model is an ordinary one. ``to``, ``half`` and their like call ``_apply``."""

Part = tuple[str, ...]
"""Names of modules that are read together."""

Slot = tuple[str, dict[str, Any], str]
"""A tensor's name in its model, and where it is registered: a module's parameters or buffers, and the key there."""


class Parts:
    """The parts of one model, which notes them."""

    def __init__(self, model: nn.Module, parts: Sequence[Part], fetch: Callable[[Part], nn.Module]) -> None:
        """Note ``parts`` of ``model``; none of them is in memory yet.

        Args:
            fetch: reads a part: a model in which its modules have their tensors, under the same names.
        """
        self._model, self._parts, self._fetch = model, list(parts), fetch
        self._here: Part | None = None
        for name in self._names():
            module = model.get_submodule(name)
            module.forward = self._on_demand(name, module.forward)
        model.__dict__[_ATTRIBUTE] = self
        model.__dict__ |= {method: _refusing(message) for method, message in _REFUSED.items()}

    def __deepcopy__(self, memo: Any) -> Parts:
        """Refused: modules of the copy would read the original's parts."""
        raise ModelError(f"{_STREAMED}: it cannot be copied; load it a second time")

    def bring(self, name: str) -> None:
        """Have the part with the module or the tensor called ``name`` in memory, and no other."""
        part = next((part for part in self._parts if any(f"{name}.".startswith(f"{each}.") for each in part)), None)
        if part is None or part == self._here:
            return
        self._put_away()
        for (_, owner, key), tensor in self._read(part):
            owner[key] = tensor.requires_grad_(owner[key].requires_grad)
        self._here = part

    def bring_first(self) -> None:
        """What embeds tokens, or the first block."""
        self.bring(self._parts[0][0])

    def release(self) -> None:
        """Read nothing on demand any more; what was there is put away."""
        self._put_away()
        for name in self._names():
            self._model.get_submodule(name).__dict__.pop("forward", None)

    def settle(self, keep: Callable[[Part, dict[str, Tensor]], dict[str, Tensor]]) -> None:
        """Have for good what is still missing; the model is an ordinary one afterwards.

        Args:
            keep: makes what stays of the tensors of a part, by their names in the model; those that are tied stand once.
        """
        for part in self._parts:
            found = list(self._read(part))
            names = {id(tensor): name for (name, _, _), tensor in reversed(found)}
            kept = keep(part, {names[id(tensor)]: tensor for _, tensor in found})
            made: dict[str, Any] = {}
            for (_, owner, key), tensor in found:
                name = names[id(tensor)]
                made.setdefault(name, _as(owner[key], kept[name]))
                owner[key] = made[name]
        for name in (_ATTRIBUTE, *_REFUSED):
            del self._model.__dict__[name]

    def _read(self, part: Part) -> Iterator[tuple[Slot, Tensor]]:
        """Every tensor of ``part`` that the model has a place for."""
        loaded = dict(self._fetch(part).named_modules())
        for start in part:
            for name, module in self._model.get_submodule(start).named_modules(prefix=start):
                if (source := loaded.get(name)) is None:  # a packed stack of experts, which is a module of its own
                    continue
                for there, owner in ((source._parameters, module._parameters), (source._buffers, module._buffers)):
                    for key in [key for key, tensor in there.items() if tensor is not None and key in owner]:
                        yield (f"{name}.{key}", owner, key), there.pop(key)

    def _put_away(self) -> None:
        away: dict[int, Any] = {}
        for name in self._here or ():
            for module in self._model.get_submodule(name).modules():
                for owner in (module._parameters, module._buffers):
                    for key, tensor in owner.items():
                        if tensor is not None:
                            away.setdefault(id(tensor), _as(tensor, tensor.to("meta")))
                            owner[key] = away[id(tensor)]
        self._here = None

    def _on_demand(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.bring(name)
            return forward(*args, **kwargs)

        return run

    def _names(self) -> Iterator[str]:
        return (name for part in self._parts for name in part)


def _refusing(message: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ModelError(message)

    return refuse


def _as(like: Tensor, tensor: Tensor) -> Tensor:
    """``tensor`` as a parameter or a buffer, whichever ``like`` is."""
    return nn.Parameter(tensor.detach(), like.requires_grad) if isinstance(like, nn.Parameter) else tensor.detach()


def parts_of(model: nn.Module) -> Parts | None:
    """The parts of ``model``, if it is read in parts."""
    found: Parts | None = model.__dict__.get(_ATTRIBUTE)
    return found


def bring(model: nn.Module, name: str) -> None:
    """Have the module or the tensor called ``name`` in memory; of an ordinary model everything is."""
    if (parts := parts_of(model)) is not None:
        parts.bring(name)


def stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The state dict's tensors, each in memory until the next one is asked for."""
    for name in model.state_dict():
        bring(model, name)
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = module._parameters[key] if key in module._parameters else module._buffers[key]
        assert tensor is not None  # it is in the state dict
        yield name, tensor


def input_device(model: nn.Module) -> torch.device:
    """Where the inputs of ``model`` are to be, asked right before it runs.

    What is read in parts is read into the CPU's memory. The first part is there then: Llama 4 moves its inputs to where its
    embedding is.
    """
    if (parts := parts_of(model)) is None:
        return next(model.parameters()).device
    parts.bring_first()
    return torch.device("cpu")
