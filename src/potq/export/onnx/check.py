"""An ONNX model on the disk against the model it was made of: ONNX Runtime reads every weight, and computes a few tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potq.errors import ExportError
from potq.export.blocks import BlockType
from potq.export.onnx.decoder import Cache, Probe
from potq.export.onnx.types import DOMAIN, gather_attributes

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

_ROWS_AT_ONCE = 1 << 22  # weights
_TOLERANCE = 1e-4  # of logits, relative to the largest: products are summed in another order
_PREFILL = 5  # tokens of the first call, the others one by one


def check_weights(path: Path, model: Any, kinds: dict[str, BlockType]) -> None:
    """Compare every packed weight of ``model``, by its owner's name, with what ONNX Runtime makes of the file's tensors.

    Raises:
        ExportError: names the module that differs.
    """
    import onnx_ir

    stored = onnx_ir.load(path).graph.initializers
    for name, kind in kinds.items():
        codes, scales = (_array(stored, f"{name}.{part}") for part in ("weight_codes", "weight_scales"))
        weight = model.get_submodule(name).quantized.dequantize()
        step = max(1, _ROWS_AT_ONCE // weight.shape[1])
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            if not torch.equal(dequantize(codes[rows], scales[rows], kind)[:, : weight.shape[1]], weight[rows]):
                raise ExportError(f"{name} does not read back; nothing was written")


def _array(stored: Any, name: str) -> NDArray[Any]:
    """A tensor of the file, mapped into memory.

    Raises:
        ExportError: the graph has no such name.
    """
    if name not in stored:
        raise ExportError(f"the ONNX model has no tensor {name}; nothing was written")
    found: NDArray[Any] = stored[name].const_value.numpy()
    return found


def dequantize(codes: NDArray[Any], scales: NDArray[Any], kind: BlockType) -> Tensor:
    """What ONNX Runtime's GatherBlockQuantized makes of codes ``(rows, blocks, bytes)`` and scales ``(rows, blocks)``.

    Returns:
        Float32 ``(rows, blocks * weights of a block)``.
    """
    import numpy as np
    from onnx import TensorProto, helper

    types = {"codes": TensorProto.UINT8, "ids": TensorProto.INT64, "scales": TensorProto.FLOAT}
    node = helper.make_node("GatherBlockQuantized", list(types), ["weights"], domain=DOMAIN, **gather_attributes(kind))
    inputs = [helper.make_tensor_value_info(name, dtype, None) for name, dtype in types.items()]
    graph = helper.make_graph([node], "reader", inputs, [helper.make_tensor_value_info("weights", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    session = _session(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    feeds = {"codes": codes, "ids": np.arange(len(codes)), "scales": scales[..., None]}
    return torch.from_numpy(session.run(None, feeds)[0]).flatten(1)


def check_logits(path: Path, probe: Probe) -> None:
    """Compare what the file computes, with its cache, with what the model did.

    Raises:
        ExportError: ONNX Runtime cannot run it, or its logits differ.
    """
    past = [(keys[:, :, :0], values[:, :, :0]) for keys, values in probe.cache]
    logits, start, total = [], 0, probe.tokens.shape[1]
    session = _session(str(path))
    while start < total:
        stop = start + 1 if start else min(_PREFILL, total)
        found, past = _run(session, probe.inputs(start, stop, past), probe)
        logits.append(found)
        start = stop
    difference = float((torch.cat(logits, 1) - probe.logits).abs().max() / probe.logits.abs().max())
    if not difference <= _TOLERANCE:
        raise ExportError(
            f"the ONNX model does not compute what the model does: its logits differ by {difference:.1e} of the largest; "
            "nothing was written"
        )


def _run(session: onnxruntime.InferenceSession, inputs: dict[str, Any], probe: Probe) -> tuple[Tensor, Cache]:
    flat = [inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"]]
    flat += [part for layer in inputs["past_key_values"] for part in layer]
    known = {value.name for value in session.get_inputs()}
    feeds = {name: tensor.numpy() for name, tensor in zip(probe.input_names, flat, strict=True) if name in known}
    logits, *present = (torch.from_numpy(array) for array in session.run(probe.output_names, feeds))
    return logits, list(zip(present[::2], present[1::2], strict=True))


def _session(model: str | bytes) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
