"""Folders in compressed-tensors' format ``mxfp4-pack-quantized``, which vLLM and stock transformers load without potq.

A linear ``M`` is ``M.weight_packed``, uint8 ``(out, in / 2)`` with two E2M1 codes a byte, the first in the low half, and
``M.weight_scale``, uint8 ``(out, in / 32)``, the exponent + 127 of what the code 1.0 is worth. Embeddings, and a head that
does not fit, are floats: the format has no other types here.

Its package unpacks to bfloat16, whatever the config says, so bfloat16 is what the config says. Other tensors keep their
dtype in the file; readers cast them.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from potq.checkpoint import check_destination, disk_errors, flush, replacing
from potq.errors import ExportError
from potq.export.blocks import encode, misfit, obstacle
from potq.export.card import write_export_card
from potq.export.floats import exact_floats
from potq.export.output import check_on_cpu, folder_bytes
from potq.export.report import ExportedTensor, ExportReport
from potq.export.targets import COMPRESSED_TENSORS, check_schemes
from potq.model import packed_modules
from potq.tensor import QuantizedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from potq.nn import PackedModule

_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer  # and: pip install compressed-tensors

model, tokenizer = AutoModelForCausalLM.from_pretrained("{path}"), AutoTokenizer.from_pretrained("{path}")
```

or `vllm serve {path}`. Packed weights equal the checkpoint's. The model computes in bfloat16: what is stored as floats (the
embedding, perhaps the head) is rounded to that when it is loaded."""
_FORMAT = COMPRESSED_TENSORS.types[0]


def export_compressed_tensors(
    model: PreTrainedModel, path: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase, *, force: bool = False
) -> ExportReport:
    """Write a packed ``model`` and its ``tokenizer`` as a model folder whose weights equal the model's, every one.

    Args:
        model: quantized by potq, its linears in schemes that E2M1 with E8M0 scales holds (``mxfp4``, ``mxpot``, ...).
        path: the folder.
        tokenizer: any.
        force: replace an existing model folder; a ``README.md`` in it that potq did not write is kept.

    Raises:
        ExportError: a scheme without exact form, linears that are no ``nn.Linear`` (GPT-2's), no packed weight, a scale or
            rows that do not fit.
        CheckpointError: something is in the way at ``path``, or the disk is full.
    """
    target = check_destination(path, force=force)
    check_on_cpu(model)
    hollow, packed = _hollow(model), packed_modules(model)
    linears = _linears(model, hollow)
    codes = {f"{name}.weight_{key}" for name, module in packed.items() for key in module.quantized.tensors()}
    state = {key: value for key, value in model.state_dict().items() if key not in codes}
    tensors = []
    for name, module in packed.items():
        if module.tied_to is None:
            weight = module.quantized
            stored = _packed(name, weight) if name in linears else {"weight": exact_floats(weight.dequantize(), name)}
            state |= {f"{name}.{key}": value for key, value in stored.items()}
            tensors.append(_described(name, weight, stored))
    hollow.config.quantization_config = _config(hollow, set(linears))
    needed = sum(tensor.nbytes for tensor in state.values())
    with disk_errors(target, needed), replacing(target) as folder:
        hollow.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        report = ExportReport(path=str(target), nbytes=folder_bytes(folder), tensors=tensors)
        use = _USE.format(path=target.name)
        write_export_card(
            folder, model, report, library="transformers", use=use, tag=COMPRESSED_TENSORS.name, replaces=target
        )
        flush(folder)
    return report


def _hollow(model: PreTrainedModel) -> Any:
    """The full-precision model of the same config, without weights: what the folder's reader will build."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        hollow = type(model)(config).to(torch.bfloat16)
    hollow.generation_config = copy.deepcopy(model.generation_config)
    return hollow


def _linears(model: PreTrainedModel, hollow: nn.Module) -> dict[str, PackedModule]:
    """The linears to be stored packed: all but a head that the format cannot hold.

    Raises:
        ExportError: there are none, or one that the format cannot hold.
    """
    head = model.get_output_embeddings()
    found = {}
    for name, module in packed_modules(model).items():
        owner = hollow.get_submodule(name)
        if isinstance(owner, nn.Embedding) or module.tied_to is not None:
            continue
        if not isinstance(owner, nn.Linear):
            raise ExportError(f"{name} is a {type(owner).__name__}; compressed-tensors only knows nn.Linear")
        if module is not head or obstacle(module.scheme, _FORMAT, module.quantized.shape[1]) is None:
            found[name] = module
    if not found:
        raise ExportError("the model has no linear that potq quantized; quantize it first")
    check_schemes([module.scheme for module in found.values()], COMPRESSED_TENSORS, allow_8bit=False)
    return found


def _packed(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """The stored tensors of one linear."""
    if (why := misfit(weight, _FORMAT)) is not None:
        raise ExportError(f"{name} does not fit {_FORMAT.name}: {why}; leave it out (ignore)")
    blocks = list(encode(weight, _FORMAT))
    codes = torch.cat([part.codes.flatten(1) for part in blocks])
    scale = torch.cat([part.scales for part in blocks])
    return {"weight_packed": codes[:, ::2] | codes[:, 1::2] << 4, "weight_scale": scale}


def _config(hollow: nn.Module, packed: set[str]) -> dict[str, Any]:
    """``quantization_config``: every linear is packed but those named."""
    weights = {
        "num_bits": 4,
        "type": "float",
        "strategy": "group",
        "group_size": 32,
        "symmetric": True,
        "dynamic": False,
        "scale_dtype": "torch.uint8",
        "zp_dtype": "torch.uint8",
    }
    linears = [name for name, module in hollow.named_modules() if isinstance(module, nn.Linear)]
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT.name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "format": _FORMAT.name}},
        "ignore": [name for name in linears if name not in packed],
    }


def _described(name: str, weight: QuantizedWeight, stored: dict[str, Tensor]) -> ExportedTensor:
    floats = stored.get("weight")
    return ExportedTensor(
        name=f"{name}.{next(iter(stored))}",
        module=f"{name}.weight",
        type=_FORMAT.name if floats is None else str(floats.dtype).removeprefix("torch."),
        scheme=weight.scheme.name,
        weights=weight.shape[0] * weight.shape[1],
        nbytes=sum(tensor.nbytes for tensor in stored.values()),
        note="" if floats is None else "compressed-tensors packs linears only, and only in MXFP4",
    )
