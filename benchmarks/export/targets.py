"""The targets of ``export/measure.py``: how each is written, and read by its own reader.

A new one is an entry in ``TARGETS``: ``write`` makes the files, ``read`` gives every weight by transformers' name.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import potq
from benchmarks.export import onnx as export_onnx
from benchmarks.peers.packages import UnavailableError
from potq.export.compressed_tensors import export_compressed_tensors
from potq.export.gguf.write import export_gguf
from potq.export.report import ExportReport

_STOCK = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
folder, output, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
torch.set_num_threads(int(sys.argv[4]))
model = AutoModelForCausalLM.from_pretrained(folder).eval()
with torch.no_grad():
    logits = model(torch.tensor(ids)).logits
found = {"logits": logits}
for name, module in model.named_modules():
    for key in ("weight", "bias"):
        if isinstance(getattr(module, key, None), torch.Tensor):
            found[f"{name}.{key}"] = getattr(module, key).detach().clone().contiguous()
assert "potq" not in sys.modules
save_file(found, output)
"""


@dataclass(frozen=True)
class Target:
    """A target of ``potq export``.

    Attributes:
        name: the word of ``--to``.
        write: a packed folder to files at a path; what was written.
        read: every weight of the files by the target's own reader, linears as ``(out, in)``.
        schemes: those it is measured with, of models whose linears are ``nn.Linear``; None: all.
        suffix: of the path.
    """

    name: str
    write: Callable[[Path, Path], ExportReport]
    read: Callable[[Path], dict[str, Tensor]]
    schemes: tuple[str, ...] | None = None
    suffix: str = ""


def _write_gguf(folder: Path, path: Path) -> ExportReport:
    tokenizer = potq.load_tokenizer(folder)
    return export_gguf(potq.load(folder), path, tokenizer, name=folder.name, allow_8bit=True, force=True)


def _read_gguf(path: Path) -> dict[str, Tensor]:
    """By transformers' GGUF reader: ``gguf`` dequantizes, transformers names tensors and turns rows back."""
    return named_weights(potq.load(path, dtype="float32"))


def _write_compressed(folder: Path, path: Path) -> ExportReport:
    return export_compressed_tensors(potq.load(folder), path, potq.load_tokenizer(folder), allow_8bit=True, force=True)


def _read_compressed(path: Path) -> dict[str, Tensor]:
    """What is packed by compressed-tensors, which makes bfloat16 or float16 of it; floats as they stand in the file."""
    stored: dict[str, Tensor] = load_file(path / "model.safetensors")
    unpacked = stock(path, [[1, 2, 3]])
    names = {name.removesuffix("_packed") for name in stored if name.endswith(".weight_packed")}
    found = {name: unpacked[name] for name in names}
    found |= {name: values for name, values in stored.items() if name.endswith((".weight", ".bias"))}
    found.setdefault("lm_head.weight", found["model.embed_tokens.weight"])  # a tied one is stored once
    return found


def stock(folder: Path, ids: list[list[int]], threads: int = 1) -> dict[str, Tensor]:
    """Logits and weights by stock transformers with compressed-tensors, in a process that never hears of potq.

    Raises:
        UnavailableError: compressed-tensors is not installed.
    """
    if importlib.util.find_spec("compressed_tensors") is None:
        raise UnavailableError("pip install compressed-tensors")
    output = folder.parent / f".{folder.name}.stock"
    words = [sys.executable, "-c", _STOCK, str(folder), str(output), json.dumps(ids), str(threads)]
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
        found: dict[str, Tensor] = load_file(output)
        return found
    finally:
        output.unlink(missing_ok=True)


def named_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Weights and biases of every module, linears as ``(out, in)``, float32."""
    found = {}
    for name, module in model.named_modules():
        for key in ("weight", "bias"):
            values = getattr(module, key, None)
            if isinstance(values, Tensor):
                turned = key == "weight" and type(module).__name__ == "Conv1D"
                found[f"{name}.{key}"] = (values.t() if turned else values).detach().float()
    return found


TARGETS = (
    Target("gguf", _write_gguf, _read_gguf, suffix=".gguf"),
    Target("compressed-tensors", _write_compressed, _read_compressed, schemes=("mxpot", "mxfp4", "pot3", "pot4")),
    Target("onnx", export_onnx.write, export_onnx.read),
)
