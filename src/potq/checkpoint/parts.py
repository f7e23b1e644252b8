"""A model folder read in parts: a block at a time, by transformers' own loader, so that its rules hold.

A part is loaded as a model that is nothing else: its class builds the whole on the meta device, and empties what is not
wanted before weights are read. Renamed, merged and cast tensors, ties, and buffers that no file holds come out as ever.
Tensors that need none of it are views of the mapped file, which takes no memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from potq.checkpoint.folder import require_all
from potq.nn.parts import Part, Parts
from potq.nn.weights import quantizable_modules
from potq.ptq.blocks import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_in_parts(model: PreTrainedModel, name: str, dtype: Any, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Turn ``model``, which is on the meta device, into one that is read in parts.

    Its blocks are one part each. All other linears and embeddings are a part together. The rest is read now.

    Args:
        name: where its files are, as ``from_pretrained`` takes it.
        dtype: likewise.
        errors: makes potq's own errors of transformers', whenever a part is read.

    Raises:
        ModelError: the model has no list of blocks.
        CheckpointError: files that cannot be read; parts raise it too.
    """
    prefix, blocks = find_blocks(model)
    inside = [f"{prefix}.{index}" for index in range(len(blocks))]
    outside = tuple(each for each in quantizable_modules(model) if not each.startswith(f"{prefix}."))
    parts: list[Part] = [*([outside] if outside else []), *((each,) for each in inside)]

    def fetch(part: Part) -> nn.Module:
        with errors():
            return _load(type(model), name, dtype, [each for other in parts if other != part for each in other])

    with errors():
        rest: Any = _load(type(model), name, dtype, inside)
    model.all_tied_weights_keys = rest.all_tied_weights_keys  # without those that the files hold twice, and not alike
    for owner, module in model.named_modules():
        if owner not in outside and not f"{owner}.".startswith(f"{prefix}."):
            _adopt(module, rest.get_submodule(owner))
    Parts(model, parts, fetch)


def _adopt(module: nn.Module, loaded: nn.Module) -> None:
    module._parameters.update(loaded._parameters)
    module._buffers.update(loaded._buffers)


def _load(kind: Any, name: str, dtype: Any, unwanted: list[str]) -> nn.Module:
    """A model of class ``kind`` whose modules ``unwanted`` are empty; there is no word on their tensors.

    Raises:
        CheckpointError: the files changed: a tensor is missing that was there.
    """

    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, *args, **kwargs)
        for each in unwanted:
            self.set_submodule(each, nn.Module())
            self.get_submodule(each.rpartition(".")[0])._is_hf_initialized = True  # SigLIP's reads its children's weights
        empty = tuple(f"{each}." for each in unwanted)
        ties = self.all_tied_weights_keys.items()
        self.all_tied_weights_keys = {
            tied: source for tied, source in ties if not tied.startswith(empty) and not source.startswith(empty)
        }

    members = {"__init__": initialize, "__module__": kind.__module__, "_keys_to_ignore_on_load_unexpected": [".*"]}
    partial: Any = type(kind.__name__, (kind,), members)
    with _without_progress():
        loaded, info = partial.from_pretrained(name, dtype=dtype, use_safetensors=True, output_loading_info=True)
    require_all(name, info["missing_keys"])
    made: nn.Module = loaded
    return made


@contextmanager
def _without_progress() -> Iterator[None]:
    """No bar of transformers' for every part."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
