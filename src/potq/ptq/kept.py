"""Packed weights in a work folder: written when they are done, read when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from potq.errors import ModelError
from potq.nn.parts import Part
from potq.nn.plan import WeightPlan
from potq.numerics.tensor import QuantizedWeight
from potq.resume import WorkFolder

Reader = Callable[[], QuantizedWeight]
"""Gives a packed weight."""


def block_part(index: int) -> str:
    """What the file of a finished block is called in a work folder."""
    return f"block-{index:04}"


def in_memory(weight: QuantizedWeight) -> Reader:
    """What gives ``weight`` itself."""
    return lambda: weight


def in_folder(folder: WorkFolder, part: str, name: str, target: WeightPlan) -> Reader:
    """What reads the weight ``name`` of the file ``part``, which is mapped: it takes memory only while it is looked at."""
    return partial(_read, folder, part, name, target)


def _read(folder: WorkFolder, part: str, name: str, target: WeightPlan) -> QuantizedWeight:
    found = folder.load(part)
    if found is None:
        raise ModelError(f"{part} is no longer in the work folder {folder.folder}; quantize again")
    return stored_weight(found, name, target)


def stored_weight(found: dict[str, Tensor], name: str, target: WeightPlan) -> QuantizedWeight:
    """The weight ``name`` among the tensors of a file."""
    parts = {key: found[f"{name}.{key}"] for key in ("packed", "scale", "row_scale") if f"{name}.{key}" in found}
    return QuantizedWeight(shape=target.shape, scheme=target.scheme, **parts)


def weight_tensors(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """The inverse of :func:`stored_weight`."""
    return {f"{name}.{key}": tensor for key, tensor in weight.tensors().items()}


def keep_rest(folder: WorkFolder, part: Part, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is not quantized of a part, in a file that is mapped."""
    name = f"rest-{part[0]}"
    folder.save(name, tensors)
    found = folder.load(name)
    if found is None:
        raise ModelError(f"{name} cannot be read from the work folder {folder.folder}; quantize again")
    return found
