"""ONNX folders for ``export/measure.py``: their weights by the operators' definition, and ONNX Runtime as it runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import potq
from benchmarks.peers.packages import optional
from potq.export.onnx.write import MODEL_FILE, export_onnx
from potq.export.report import ExportReport
from potq.kernels import Activations, set_activations


class OnnxDecoder:
    """A folder's model in ONNX Runtime, one text, with its cache."""

    def __init__(self, folder: Path, threads: int) -> None:
        runtime = optional("onnxruntime", "onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        self._session = runtime.InferenceSession(str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"])
        self._inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]
        self.reset()

    def reset(self) -> None:
        """Forget the text."""
        caches = {name: shape for name, shape in self._inputs.items() if name.startswith("past")}
        self._past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in caches.items()}

    def __call__(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits ``(tokens, vocabulary)`` of what comes next."""
        start = next(iter(self._past.values())).shape[2]
        feeds = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, start + len(ids)), np.int64),
            "position_ids": np.arange(start, start + len(ids))[None],
        }
        known = {name: array for name, array in feeds.items() if name in self._inputs}
        logits, *present = self._session.run(self._outputs, known | self._past)
        self._past = dict(zip(self._past, present, strict=True))
        found: NDArray[np.float32] = logits[0]
        return found


def write(folder: Path, path: Path, activations: Activations = "float") -> ExportReport:
    model, tokenizer = potq.load(folder), potq.load_tokenizer(folder)
    return export_onnx(model, path, tokenizer, activations=activations, allow_8bit=True, force=True)


def read(path: Path) -> dict[str, Tensor]:
    """Every weight of the file, by transformers' name: ``(q - 2**(bits - 1)) * scale``."""
    onnx = optional("onnx", "onnx")
    graph = onnx.load(path / MODEL_FILE).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name: torch.from_numpy(array.copy()) for name, array in stored.items() if name.endswith((".weight", ".bias"))}
    columns = {node.input[1]: attribute(node, "K") for node in graph.node if node.op_type == "MatMulNBits"}
    for node in graph.node:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        name = node.input[1] if node.op_type == "MatMulNBits" else node.input[0]
        owner = name.removesuffix("_codes")
        values = decoded(stored[name], stored[f"{owner}_scales"], attribute(node, "block_size"))
        found[owner] = values[:, : columns.get(name, values.shape[1])]
    tied = next((name for name in found if name.endswith(("embed_tokens.weight", "wte.weight"))), None)
    if tied is not None:
        found.setdefault("lm_head.weight", found[tied])  # stored once
    return found


def attribute(node: Any, name: str) -> int:
    return next(int(each.i) for each in node.attribute if each.name == name)


def decoded(codes: NDArray[np.uint8], scales: NDArray[np.float32], block: int) -> Tensor:
    """Codes ``(rows, blocks, bytes)`` and scales ``(rows, blocks)`` as float32 ``(rows, weights)``."""
    bits = codes.shape[2] * 8 // block
    each = 8 // bits  # codes of a byte, low bits first
    q = (codes[..., None] >> (np.arange(each, dtype=np.uint8) * bits)) & (2**bits - 1)
    weights = (q.reshape(*codes.shape[:2], block).astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    return torch.from_numpy(weights.reshape(len(codes), -1))


def differences(folder: Path, path: Path, ids: Tensor, threads: int) -> dict[str, float]:
    """How far ONNX Runtime's logits of ``ids`` are from our exact ones, relative to the largest: at once, token by token."""
    model = potq.load(folder, dtype="float32").eval()
    set_activations(model, "float")
    with torch.inference_mode():
        ours = model(ids[None]).logits[0]
    decoder = OnnxDecoder(path, threads)
    at_once = torch.from_numpy(decoder(ids.tolist()))
    decoder.reset()
    steps = torch.cat([torch.from_numpy(decoder([token])) for token in ids.tolist()])
    largest = float(ours.abs().max())
    pairs = {"at_once": at_once, "token_by_token": steps}
    return {name: float((found - ours).abs().max()) / largest for name, found in pairs.items()}
