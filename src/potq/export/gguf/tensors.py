"""A model's tensors as ggml stores them: which type each gets, and its bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from potq.errors import ExportError
from potq.export.blocks import encode, misfit
from potq.export.floats import exact_floats
from potq.export.gguf.families import Family, interleaved
from potq.export.gguf.types import GGML_TYPES, block_bytes
from potq.export.targets import GGUF
from potq.nn.packed_model import packed_modules
from potq.nn.weights import as_matrix
from potq.numerics.tensor import QuantizedWeight

if TYPE_CHECKING:
    import gguf
    from numpy.typing import NDArray

_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """One tensor of the file. What it holds is computed when it is asked for: no copy of the model is kept.

    Attributes:
        name: in the file.
        module: whose weight it is, in transformers' words.
        source: the packed weight ``(out, in)``, or a float tensor of one or two dimensions.
        order: int64 ``(out,)``, where each row of the file comes from; None: as they stand.
        kind: ggml's name of its type.
        note: why a packed weight is stored as floats, or nothing.
    """

    name: str
    module: str
    source: QuantizedWeight | Tensor
    order: Tensor | None
    kind: str
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    @property
    def nbytes(self) -> int:
        bits = GGML_TYPES[self.kind].block.bits_per_weight if self.kind in GGML_TYPES else 8 * _FLOATS[self.kind].itemsize
        return round(math.prod(self.shape) * bits / 8)

    def data(self) -> NDArray[Any]:
        """What the file holds: uint8 ``(out, bytes of a row)``; float32 ``(n,)`` of a vector."""
        if self.kind in _FLOATS:
            stored = self.values(slice(None)).to(_FLOATS[self.kind])
            return (stored if stored.ndim == 1 else stored.view(torch.uint8)).numpy()
        weight, kind = cast(QuantizedWeight, self.source), GGML_TYPES[self.kind]
        data = torch.cat([block_bytes(part, kind) for part in encode(weight, kind.block)])
        return (data if self.order is None else data[self.order]).numpy()

    def values(self, rows: slice) -> Tensor:
        """What ``rows`` of the file say, float32."""
        places = rows if self.order is None else self.order[rows]
        if isinstance(self.source, QuantizedWeight):
            return self.source.rows(places).dequantize()
        return self.source[places].float().contiguous()


def gguf_tensors(model: Any, family: Family) -> Iterator[GgufTensor]:
    """Every tensor of ``model``, those first that transformers computes.

    Raises:
        ExportError: a tensor that llama.cpp has no place for, or that no type of ggml's holds exactly.
    """
    for name, values in family.extra(model.config).items():
        yield GgufTensor(name, name, values, None, "F32")
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
            yield GgufTensor(name, module, source, order, _float_kind(source, module))


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
    for kind, ggml_type in GGML_TYPES.items():
        if misfit(weight, ggml_type.block) is None:
            return GgufTensor(name, module, weight, order, kind)
    form = GGUF.form(weight.scheme)
    why = misfit(weight, form) if form is not None else "no type holds its scheme"
    return GgufTensor(name, module, weight, order, _float_kind(weight.dequantize(), module), why or "")


def _float_kind(values: Tensor, module: str) -> str:
    """The smallest float type that holds them; vectors are float32, as ggml's operations want them.

    Raises:
        ExportError: float64 values that float32 does not hold.
    """
    exact = exact_floats(values, module).dtype
    return "F32" if values.ndim == 1 else next(kind for kind, dtype in _FLOATS.items() if dtype == exact)
