"""Writing a GGUF file, and reading it back before it gets its name."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from potq.errors import CheckpointError, ExportError
from potq.export.card import write_export_card
from potq.export.gguf.families import Family, family
from potq.export.gguf.tensors import GgufTensor, gguf_tensors
from potq.export.gguf.vocabulary import add_vocabulary
from potq.export.output import check_file, check_on_cpu, refuse_experts, replacing_file
from potq.export.report import ExportedTensor, ExportReport
from potq.export.targets import GGUF, check_schemes
from potq.nn.packed_model import packed_modules
from potq.numerics.tensor import QuantizedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HEADER = 1 << 20  # bytes, beside the vocabulary's, that a file needs for other things than tensors
_USE = """`llama-cli -m {file} -p "Once upon a time"`, or anything else that is built on llama.cpp. Every weight equals the
checkpoint's; llama.cpp rounds the inputs of products to 8 bits."""
_ROWS_AT_ONCE = 1024  # that are compared


def export_gguf(
    model: PreTrainedModel,
    path: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "",
    allow_8bit: bool = False,
    force: bool = False,
) -> ExportReport:
    """Write a packed ``model`` and its ``tokenizer`` as one GGUF file whose weights equal the model's, every one.

    A model card is written as ``README.md`` beside it, unless there is one of something else.

    The file is read back by ``gguf`` and compared before it gets its name. Memory holds the model and one of the file's
    tensors.

    Args:
        model: quantized by potq; of the families ``llama``, ``mistral``, ``qwen2``, ``qwen3`` and ``gpt2``.
        path: the file.
        tokenizer: byte-level BPE, or SentencePiece's kind of BPE.
        name: what the file says the model is called.
        allow_8bit: also write schemes that only fit types of 8 bits and more.
        force: replace an existing file.

    Raises:
        ExportError: a scheme without exact form, a family, setting or tokenizer that llama.cpp does not have, no packed
            weight.
        CheckpointError: ``path`` exists and ``force`` is not given, or the disk is full.
    """
    target = check_file(path, force=force, suffix=".gguf")
    check_on_cpu(model)
    refuse_experts(model, GGUF.name)
    schemes = [module.scheme for module in packed_modules(model).values()]
    if not schemes:
        raise ExportError("the model is not quantized by potq; quantize it first")
    check_schemes(schemes, GGUF, allow_8bit=allow_8bit)
    kind = family(model.config)
    tensors = list(gguf_tensors(model, kind))
    needed = sum(tensor.nbytes for tensor in tensors) + _HEADER
    with replacing_file(target, needed) as partial:
        _write(partial, tensors, kind, model.config, tokenizer, name)
        _check(partial, tensors)
        report = _report(target, partial.stat().st_size, tensors)
    try:
        write_export_card(target.parent, model, report, library="gguf", use=_USE.format(file=target.name), tag="gguf")
    except OSError as error:
        raise CheckpointError(f"{target} is written, whole; its model card beside it could not be: {error}") from error
    return report


def _write(
    path: Path, tensors: list[GgufTensor], kind: Family, config: Any, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, kind.architecture)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        if name:
            writer.add_name(name)
        writer.add_file_type(_file_type(tensors))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        kind.metadata(writer, config)
        add_vocabulary(writer, tokenizer, config.vocab_size)
        for tensor in tensors:
            number, width = gguf.GGMLQuantizationType[tensor.kind], np.dtype(np.float32)  # names no type: ``number`` does
            writer.add_tensor_info(tensor.name, tensor.shape, width, tensor.nbytes, raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data())
    finally:
        writer.close()


def _file_type(tensors: list[GgufTensor]) -> int:
    """llama.cpp's number for the type that most weights have."""
    import gguf

    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.kind] += math.prod(tensor.shape) if len(tensor.shape) > 1 else 0
    common = weights.most_common(1)[0][0]
    names = {"MXFP4": "MOSTLY_MXFP4_MOE", "F32": "ALL_F32"}
    return int(gguf.LlamaFileType[names.get(common, f"MOSTLY_{common}")])


def _check(path: Path, tensors: list[GgufTensor]) -> None:
    """Compare the file with the model, weight by weight.

    Raises:
        ExportError: names the tensor that differs.
    """
    import gguf

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for tensor in tensors:
        stored = found[tensor.name]
        for start in range(0, tensor.shape[0], _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            values = gguf.quants.dequantize(stored.data[rows], stored.tensor_type)
            if not np.array_equal(values, tensor.values(rows).numpy()):
                raise ExportError(f"{tensor.name} does not read back as {tensor.module}; nothing was written")


def _report(target: Path, nbytes: int, tensors: list[GgufTensor]) -> ExportReport:
    rows = [
        ExportedTensor(
            name=tensor.name,
            module=tensor.module,
            type=tensor.kind,
            scheme=tensor.source.scheme.name if isinstance(tensor.source, QuantizedWeight) else None,
            weights=math.prod(tensor.shape),
            nbytes=tensor.nbytes,
            note=tensor.note,
        )
        for tensor in tensors
    ]
    return ExportReport(path=str(target), nbytes=nbytes, tensors=rows)
