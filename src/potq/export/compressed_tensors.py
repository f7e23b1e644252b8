"""Folders in compressed-tensors' formats, which vLLM and stock transformers load without potq.

Linears are packed (:mod:`potq.export.compressed_types`). Embeddings, and a head that does not fit, are floats: the format
has no other types here. The config's dtype is what packed weights are unpacked to; other tensors keep their dtype in the
file, and readers cast them.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from potq.errors import ExportError
from potq.export.blocks import BlockType, misfit
from potq.export.card import write_export_card
from potq.export.compressed_types import arguments, dtype_of, format_of, stored
from potq.export.floats import exact_floats
from potq.export.output import check_on_cpu, folder_bytes, refuse_experts
from potq.export.report import ExportedTensor, ExportReport
from potq.export.targets import COMPRESSED_TENSORS, check_schemes
from potq.files import check_destination, disk_errors, flush, replacing
from potq.nn.install import meta_model
from potq.nn.packed_model import packed_modules
from potq.numerics.tensor import QuantizedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer  # and: pip install compressed-tensors

model, tokenizer = AutoModelForCausalLM.from_pretrained("{path}"), AutoTokenizer.from_pretrained("{path}")
```

or `vllm serve {path}`. Packed weights equal the checkpoint's. The model computes in {dtype}: what is stored as floats (the
embedding, perhaps the head) is rounded to that when it is loaded."""


def export_compressed_tensors(
    model: PreTrainedModel,
    path: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    allow_8bit: bool = False,
    force: bool = False,
) -> ExportReport:
    """Write a packed ``model`` and its ``tokenizer`` as a model folder whose weights equal the model's, every one.

    Args:
        model: quantized by potq, its linears in schemes that E2M1 with E8M0 scales holds (``mxfp4``, ``mxpot``, ...), or in
            powers of two that fit integers of 4 bits (``pot3``, ``pot2``, ...).
        path: the folder.
        tokenizer: any.
        allow_8bit: also take schemes of fewer bits that fit 8-bit integers only (``pot4``, ...).
        force: replace an existing model folder; a ``README.md`` in it that potq did not write is kept.

    Raises:
        ExportError: a scheme without exact form, linears that are not ``nn.Linear`` (GPT-2's), no packed weight, a scale or
            rows that do not fit, MXFP4 beside integers.
        CheckpointError: something is in the way at ``path``, or the disk is full.
    """
    target = check_destination(path, force=force)
    check_on_cpu(model)
    refuse_experts(model, COMPRESSED_TENSORS.name)
    reader: Any = meta_model(model)  # what the folder's reader will build
    packed = packed_modules(model)
    kinds = _kinds(model, reader, allow_8bit=allow_8bit)
    dtype = dtype_of(next(iter(kinds.values())))
    reader.to(dtype)
    reader.generation_config = copy.deepcopy(model.generation_config)
    codes = {f"{name}.weight_{key}" for name, module in packed.items() for key in module.quantized.tensors()}
    state = {key: value for key, value in model.state_dict().items() if key not in codes}
    tensors = []
    for name, module in packed.items():
        if module.tied_to is None:
            weight, kind = module.quantized, kinds.get(name)
            found = stored(name, weight, kind) if kind is not None else {"weight": exact_floats(weight.dequantize(), name)}
            state |= {f"{name}.{key}": value for key, value in found.items()}
            tensors.append(_described(name, weight, kind, found))
    reader.config.quantization_config = _config(reader, kinds)
    needed = sum(tensor.nbytes for tensor in state.values())
    with disk_errors(target, needed), replacing(target) as folder:
        reader.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        report = ExportReport(path=str(target), nbytes=folder_bytes(folder), tensors=tensors)
        use = _USE.format(path=target.name, dtype=str(dtype).removeprefix("torch."))
        write_export_card(
            folder, model, report, library="transformers", use=use, tag=COMPRESSED_TENSORS.name, replaces=target
        )
        flush(folder)
    return report


def _kinds(model: PreTrainedModel, reader: nn.Module, *, allow_8bit: bool) -> dict[str, BlockType]:
    """The types of the linears to be stored packed, by name: all but a head that the format cannot hold.

    Raises:
        ExportError: no packed weight, one that the format cannot hold, or types that are unpacked to several dtypes.
    """
    head, found = model.get_output_embeddings(), {}
    for name, module in packed_modules(model).items():
        owner = reader.get_submodule(name)
        if isinstance(owner, nn.Embedding) or module.tied_to is not None:
            continue
        if not isinstance(owner, nn.Linear):
            raise ExportError(f"{name} is a {type(owner).__name__}; compressed-tensors only knows nn.Linear")
        scheme, columns = module.scheme, module.quantized.shape[1]
        kind = COMPRESSED_TENSORS.form(scheme, columns)
        if module is head and kind is None:
            continue
        check_schemes([scheme], COMPRESSED_TENSORS, allow_8bit=allow_8bit)
        kind = kind or COMPRESSED_TENSORS.form(scheme)
        assert kind is not None  # the scheme was checked; rows of these columns are what may not fit
        if (why := misfit(module.quantized, kind)) is not None:
            raise ExportError(f"{name} does not fit {kind.name}: {why}; leave it out (ignore)")
        found[name] = kind
    if not found:
        raise ExportError("the model has no linear that potq quantized; quantize it first")
    if len({dtype_of(kind) for kind in found.values()}) > 1:
        raise ExportError(
            "some linears are MXFP4, which is unpacked to bfloat16, some integers, which are to float16; quantize all alike"
        )
    return found


def _config(reader: nn.Module, kinds: dict[str, BlockType]) -> dict[str, Any]:
    """``quantization_config``: every linear is packed but those to be ignored."""
    linears = [name for name, module in reader.named_modules() if isinstance(module, nn.Linear)]
    groups = {kind: [name for name in linears if kinds.get(name) is kind] for kind in dict.fromkeys(kinds.values())}
    form = format_of(next(iter(groups)))
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": ["Linear"] if len(groups) == 1 else names,
                "weights": arguments(kind),
                "format": form,
            }
            for number, (kind, names) in enumerate(groups.items())
        },
        "ignore": [name for name in linears if name not in kinds],
    }


def _described(name: str, weight: QuantizedWeight, kind: BlockType | None, found: dict[str, Tensor]) -> ExportedTensor:
    return ExportedTensor(
        name=f"{name}.{next(iter(found))}",
        module=f"{name}.weight",
        type=kind.name if kind is not None else str(found["weight"].dtype).removeprefix("torch."),
        scheme=weight.scheme.name,
        weights=weight.shape[0] * weight.shape[1],
        nbytes=sum(tensor.nbytes for tensor in found.values()),
        note="" if kind is not None else "compressed-tensors packs linears only, and only where they fit its types",
    )
