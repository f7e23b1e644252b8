"""From a decoder to an ONNX graph, by ``torch.onnx.export(dynamo=True)``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from potq.errors import ExportError
from potq.export.onnx.decoder import Decoder, Probe

if TYPE_CHECKING:
    import onnx_ir

_OPSET = 20  # has GELU; every ONNX Runtime that has the operators for n bits reads it
_FOLDED = 64  # elements: shapes and constants are computed now, weights never copied
_BATCH, _SEQUENCE, _PAST, _TOTAL = "batch", "sequence", "past", "total"


def trace(model: nn.Module, probe: Probe) -> onnx_ir.Model:
    """The graph of ``model``, whose packed modules are :mod:`~potq.export.onnx.modules`', weights named as in the model.

    Batch size, number of tokens and length of the cache are dynamic.

    Raises:
        ExportError: torch cannot trace it.
    """
    import onnxscript.optimizer
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    example, shapes = _example(probe)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                Decoder(model),
                kwargs=example,
                dynamic_shapes=shapes,
                input_names=probe.input_names,
                output_names=probe.output_names,
                opset_version=_OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"torch.onnx.export cannot trace {type(model).__name__}: {_reason(error)}") from error
        graph: onnx_ir.Model = program.model  # type: ignore[union-attr]
        onnxscript.optimizer.optimize(graph, input_size_limit=_FOLDED)
    ClearMetadataAndDocStringPass()(graph)  # stack traces, with the paths of this machine
    for value in list(graph.graph.initializers.values()):
        value.name = str(value.name).removeprefix("model.")
    return graph


def _example(probe: Probe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Example inputs with sizes that torch takes for variable, none of them 1 or equal to another, and their names."""
    batch, start = 2, len(probe.tokens[0]) // 2
    inputs = probe.inputs(start, start + 3, [])
    example = {name: tensor.expand(batch, -1).contiguous() for name, tensor in inputs.items() if name != "past_key_values"}
    past = [tuple(part.expand(batch, -1, -1, -1).contiguous() for part in layer) for layer in probe.past(start)]
    new = {0: _BATCH, 1: _SEQUENCE}
    shapes = {"input_ids": new, "attention_mask": {0: _BATCH, 1: _TOTAL}, "position_ids": new}
    cached = {0: _BATCH, 2: _PAST}
    return {**example, "past_key_values": past}, {**shapes, "past_key_values": [(cached, cached)] * len(past)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on operators that are not installed and names of dimensions."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _reason(error: BaseException) -> str:
    """The first line of what was raised at the bottom."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0]
