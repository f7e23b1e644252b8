"""Writing a folder with an ONNX model, and reading it back before it gets its name."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from potq.config import Activations, check_activations
from potq.errors import ExportError
from potq.export.blocks import BlockType
from potq.export.card import write_export_card
from potq.export.onnx.check import check_logits, check_weights
from potq.export.onnx.decoder import probe
from potq.export.onnx.modules import to_nbits
from potq.export.onnx.packages import require_packages
from potq.export.onnx.trace import trace
from potq.export.onnx.types import ACCURACY, INT8_INPUTS
from potq.export.output import check_on_cpu, folder_bytes, refuse_experts
from potq.export.report import ExportedTensor, ExportReport
from potq.export.targets import ONNX, check_schemes
from potq.files import check_destination, disk_errors, flush, replacing
from potq.kernels import set_activations
from potq.nn.packed_model import packed_modules
from potq.nn.properties import tensor_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_FILE = "model.onnx"
_DATA_FILE = "model.onnx_data"
_USE = """```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
```

Inputs: `input_ids`, `attention_mask` (cache and new tokens), `position_ids`, `past_key_values.{i}.key` / `.value` (of length
0 at first). Outputs: `logits`, `present.{i}.key` / `.value`. Every packed weight equals the checkpoint's; """
_PRODUCTS = {
    "float": "everything is computed in float32.",
    "int8": "inputs of products may be rounded to int8 (`accuracy_level` 4).",
}


def export_onnx(
    model: PreTrainedModel,
    path: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    activations: Activations = "float",
    allow_8bit: bool = False,
    force: bool = False,
) -> ExportReport:
    """Write a packed ``model`` and its ``tokenizer`` as a folder that ONNX Runtime runs, every packed weight equal.

    The folder holds ``model.onnx``, its weights in ``model.onnx_data``, configs and tokenizer. Inputs are ``input_ids``,
    ``attention_mask``, ``position_ids`` and ``past_key_values.{i}.key`` / ``.value``, outputs ``logits`` and
    ``present.{i}.key`` / ``.value``. Everything is computed in float32 unless ``activations`` says otherwise. ONNX Runtime
    reads every weight back, and runs a few tokens in float32, before the folder gets its name. Memory holds the model, the
    file's tensors and ONNX Runtime's.

    Args:
        model: quantized by potq; any that keeps keys and values and that torch can trace.
        path: the folder.
        tokenizer: any.
        activations: "int8" lets ONNX Runtime round the inputs of products, which is many times as fast.
        allow_8bit: also write schemes that only fit 8 bits.
        force: replace an existing model folder; a ``README.md`` in it that potq did not write is kept.

    Raises:
        MissingDependencyError: a package of ``potq[onnx]`` is not installed.
        ExportError: a scheme without exact form, a model that cannot be traced or computes something else then, no packed
            weight.
        ConfigError: other ``activations``.
        CheckpointError: something is in the way at ``path``, or the disk is full.
    """
    require_packages()
    check_activations(activations)
    target = check_destination(path, force=force)
    check_on_cpu(model)
    refuse_experts(model, ONNX.name)
    schemes = [module.scheme for module in packed_modules(model).values()]
    if not schemes:
        raise ExportError("the model is not quantized by potq; quantize it first")
    check_schemes(schemes, ONNX, allow_8bit=allow_8bit)
    decoder: Any = nn.Module.to(copy.deepcopy(model).eval(), "cpu", torch.float32)  # transformers' own refuses to cast
    set_activations(decoder, "float")
    tried = probe(decoder)
    kinds = to_nbits(decoder)
    with disk_errors(target, tensor_bytes(decoder)), replacing(target) as folder:
        import onnx_ir

        onnx_ir.save(trace(decoder, tried), folder / MODEL_FILE, external_data=_DATA_FILE)
        check_weights(folder / MODEL_FILE, model, kinds)
        check_logits(folder / MODEL_FILE, tried)
        if activations == "int8":
            _round_inputs(folder / MODEL_FILE)
        _save_configs(decoder, folder)
        tokenizer.save_pretrained(folder)
        report = _report(target, folder_bytes(folder), model, kinds)
        write_export_card(
            folder, model, report, library="onnx", use=_USE + _PRODUCTS[activations], tag="onnxruntime", replaces=target
        )
        flush(folder)
    return report


def _round_inputs(path: Path) -> None:
    """Let products round their inputs to int8: an attribute of the model that was checked; no weight changes."""
    import onnx

    stored = onnx.load(path, load_external_data=False)
    for node in stored.graph.node:
        for attribute in node.attribute:
            if attribute.name == ACCURACY:
                attribute.i = INT8_INPUTS
    onnx.save(stored, path)


def _save_configs(decoder: PreTrainedModel, folder: Path) -> None:
    """``config.json`` of the model in float32, and ``generation_config.json``."""
    config = copy.deepcopy(decoder.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype, config.architectures = "float32", [type(decoder).__name__]
    config.save_pretrained(folder)
    if decoder.generation_config is not None:
        decoder.generation_config.save_pretrained(folder)


def _report(target: Path, nbytes: int, model: Any, kinds: dict[str, BlockType]) -> ExportReport:
    rows = []
    for name, kind in kinds.items():
        module = model.get_submodule(name)
        weights = module.quantized.shape[0] * module.quantized.shape[1]
        rows.append(
            ExportedTensor(
                name=f"{name}.weight_codes",
                module=f"{name}.weight",
                type=kind.name,
                scheme=module.scheme.name,
                weights=weights,
                nbytes=round(weights * kind.bits(module.quantized.shape[1]) / 8),
            )
        )
    return ExportReport(path=str(target), nbytes=nbytes, tensors=rows)
