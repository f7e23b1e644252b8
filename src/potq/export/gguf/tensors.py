"""A model's tensors as ggml stores them: which type each gets, and its bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from potq.errors import ExportError
from potq.export.blocks import encode, obstacle
from potq.export.floats import exact_floats
from potq.export.gguf.families import Family, interleaved
from potq.export.gguf.types import GGML_TYPES, block_bytes
from potq.export.targets import GGUF
from potq.model import as_matrix, packed_modules
from potq.scheme import QuantScheme
from potq.tensor import QuantizedWeight

if TYPE_CHECKING:
    import gguf
    from numpy.typing import NDArray

_FLOATS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: in the file.
        module: whose weight it is, in transformers' words.
        source: the packed weight ``(out, in)``, or a float tensor of one or two dimensions.
        order: int64 ``(out,)``, where each row of the file comes from; None: as they stand.
        kind: ggml's name of its type.
        data: bytes ``(out, bytes of a row)``, uint8; float32 ``(n,)`` of a vector.
        note: why a packed weight is stored as floats, or nothing.
    """

    name: str
    module: str
    source: QuantizedWeight | Tensor
    order: Tensor | None
    kind: str
    data: NDArray[Any]
    note: str = ""

    @property
    def weights(self) -> int:
        return math.prod(self.source.shape)

    def values(self) -> Tensor:
        """What the file must say: float32, rows in its order."""
        found = self.source.dequantize() if isinstance(self.source, QuantizedWeight) else self.source.float()
        return found if self.order is None else found[self.order]


def gguf_tensors(model: Any, family: Family) -> Iterator[GgufTensor]:
    """Every tensor of ``model``, those first that transformers computes.

    Raises:
        ExportError: a tensor that llama.cpp has no place for, or that no type of ggml's holds exactly.
    """
    for name, values in family.extra(model.config).items():
        yield _float_tensor(name, name, values, None)
    places = _places(family, model.config.num_hidden_layers)
    for module, source in _sources(model):
        name = places.get_name(module, (".weight", ".bias"))
        if name is None:
            raise ExportError(f"llama.cpp has no place for {module} in a model of its family {family.architecture}")
        heads = family.rows(module, model.config)
        order = interleaved(source.shape[0], heads) if heads is not None else None
        if isinstance(source, QuantizedWeight):
            yield _packed_tensor(name, module, source, order)
        else:
            yield _float_tensor(name, module, source, order)


def _sources(model: nn.Module) -> Iterator[tuple[str, QuantizedWeight | Tensor]]:
    """Every weight once, by its name in the state dict: packed ones, then the others; linears as ``(out, in)``."""
    for name, packed in packed_modules(model).items():
        if packed.tied_to is None:
            yield f"{name}.weight", packed.quantized
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        yield name, as_matrix(owner, parameter.detach()) if name.endswith(".weight") else parameter.detach()


def _places(family: Family, layers: int) -> gguf.TensorNameMap:
    """llama.cpp's names by transformers'."""
    import gguf

    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    return gguf.get_tensor_name_map(architecture, layers)


def _packed_tensor(name: str, module: str, weight: QuantizedWeight, order: Tensor | None) -> GgufTensor:
    """The smallest type that holds it; floats, with a note, if its rows or its scales fit none that holds its scheme."""
    columns = weight.shape[1]
    for kind, ggml_type in GGML_TYPES.items():
        blocks = encode(weight, ggml_type.block) if obstacle(weight.scheme, ggml_type.block, columns) is None else None
        if blocks is not None:
            data = torch.cat([block_bytes(part, ggml_type) for part in blocks])
            return GgufTensor(name, module, weight, order, kind, _ordered(data, order).numpy())
    floats = _float_tensor(name, module, weight.dequantize(), order)
    return GgufTensor(name, module, weight, order, floats.kind, floats.data, _why_floats(weight.scheme, columns))


def _why_floats(scheme: QuantScheme, columns: int) -> str:
    if (form := GGUF.form(scheme)) is None:
        return "no type holds its scheme"
    return obstacle(scheme, form, columns) or f"a scale is beyond the range of {form.name}'s"


def _float_tensor(name: str, module: str, values: Tensor, order: Tensor | None) -> GgufTensor:
    """The smallest float type that holds it; vectors are float32, as ggml's operations want them.

    Raises:
        ExportError: float64 values that float32 does not hold.
    """
    stored = _ordered(exact_floats(values, module), order)
    if values.ndim == 1:
        return GgufTensor(name, module, values, order, "F32", stored.float().numpy())
    data = stored.contiguous().view(torch.uint8).numpy()
    return GgufTensor(name, module, values, order, _FLOATS[stored.dtype], data)


def _ordered(data: Tensor, order: Tensor | None) -> Tensor:
    return data if order is None else data[order]
