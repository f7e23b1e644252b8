"""Whole ONNX folders: every weight equal, the logits of the model with and without its cache, nothing half-written."""

from __future__ import annotations

import copy
import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

import potq
from potq.config import PoTConfig
from potq.errors import CheckpointError, ConfigError, ExportError, MissingDependencyError
from potq.kernels import set_activations
from potq.nn.packed_model import packed_modules
from potq.numerics.scheme import QuantScheme

from .models import tiny

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")

from potq.export.onnx import packages, write  # noqa: E402
from potq.export.onnx.check import check_logits, check_weights  # noqa: E402
from potq.export.onnx.decoder import probe  # noqa: E402
from potq.export.onnx.modules import to_nbits  # noqa: E402
from potq.export.onnx.write import export_onnx  # noqa: E402

TRIED: dict[str, tuple[str, QuantScheme, dict[str, Any]]] = {
    "llama": ("llama-biased", QuantScheme("pot3"), {"intermediate_size": 100}),  # rows that end within a block
    "gpt2": ("gpt2", QuantScheme("pot2z", group_size="row"), {}),
    "mistral": ("mistral", QuantScheme("pot4"), {"sliding_window": 6, "num_hidden_layers": 1}),
    "qwen3": ("qwen3-tied", QuantScheme("mxpot", row_scale=True), {"num_hidden_layers": 1}),
}
SLOW: dict[str, tuple[str, QuantScheme, dict[str, Any]]] = {
    "llama3-rope": ("llama-llama3-rope", QuantScheme("pot2"), {}),
    "gpt2-untied": ("gpt2-untied", QuantScheme("int2"), {}),
    "qwen2-window": ("qwen2-window", QuantScheme("pot3"), {"sliding_window": 6}),
}
_DONE: dict[str, tuple[Any, Path]] = {}


def float_path(model: Any) -> Any:
    """The same packed weights, everything else in float32, activations not rounded."""
    found = nn.Module.to(copy.deepcopy(model), torch.float32)
    set_activations(found, "float")
    return found


DEEP = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="another kind stands for it: make check-deep"),
]


@pytest.fixture(params=[*TRIED, *(pytest.param(name, marks=DEEP) for name in SLOW)])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerFast
) -> tuple[Any, Path]:
    """A packed model and its folder, made once."""
    name = request.param
    if name not in _DONE:
        kind, scheme, changes = (TRIED | SLOW)[name]
        model = tiny(kind, **changes)
        if name == "mistral":
            model.to(torch.bfloat16)
        potq.quantize(model, PoTConfig(scheme=scheme, ignore=[r"0\.mlp\.(up_proj|c_fc)"]))
        folder = tmp_path_factory.mktemp("onnx") / name
        export_onnx(model, folder, byte_tokenizer, allow_8bit=True)
        _DONE[name] = model, folder
    return _DONE[name]


def initializers(folder: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(folder / "model.onnx").graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def block_sizes(folder: Path) -> dict[str, int]:
    """By the codes that an operator reads."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return {name: a.i for node in graph.node for a in node.attribute if a.name == "block_size" for name in node.input[:2]}


def decoded(codes: np.ndarray, scales: np.ndarray, columns: int, block: int) -> Tensor:
    """A weight by the operators' definition, float64."""
    bits = codes.shape[2] * 8 // block
    q = np.unpackbits(codes, axis=2, bitorder="little").reshape(*codes.shape[:2], block, bits) @ (1 << np.arange(bits))
    weights = (q - (1 << bits - 1)) * scales.astype(np.float64)[..., None]
    return torch.from_numpy(weights.reshape(len(codes), -1)[:, :columns])


class Session:
    """The folder's model in ONNX Runtime, and its cache."""

    def __init__(self, folder: Path) -> None:
        self.inner = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.outputs = [value.name for value in self.inner.get_outputs()]
        self.past: dict[str, np.ndarray] = {}

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of ``tokens`` ``(batch, n)`` behind what came before; ``mask`` ``(batch, past + n)``."""
        shapes = {value.name: value.shape for value in self.inner.get_inputs()}
        caches = [name for name in shapes if name.startswith("past")]
        for name in caches:
            self.past.setdefault(name, np.zeros((len(tokens), shapes[name][1], 0, shapes[name][3]), np.float32))
        length = self.past[caches[0]].shape[2] + tokens.shape[1]
        mask = torch.ones(len(tokens), length, dtype=torch.int64) if mask is None else mask
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        feeds = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        found = self.inner.run(None, {name: tensor.numpy() for name, tensor in feeds.items()} | self.past)
        self.past = dict(zip(caches, found[1:], strict=True))
        return torch.from_numpy(found[0])


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_every_weight_is_equal(exported: tuple[Any, Path]) -> None:
    model, folder = exported
    stored, sizes = initializers(folder), block_sizes(folder)
    for name, module in packed_modules(model).items():
        if module.tied_to is None:
            codes, scales = stored.pop(f"{name}.weight_codes"), stored.pop(f"{name}.weight_scales")
            expected = module.quantized.dequantize()
            found = decoded(codes, scales, expected.shape[1], sizes[f"{name}.weight_codes"])
            assert torch.equal(found, expected.double()), name
    values = {key: tensor.float().numpy() for key, tensor in model.named_parameters()}
    named = stored.keys() & values.keys()
    assert all((stored[key] == values[key]).all() for key in named)
    assert {key for key in values if key.endswith("bias") or "norm" in key or "ln_" in key} <= named
    assert not any("weight_" in key for key in stored)


def test_operators(exported: tuple[Any, Path]) -> None:
    model, folder = exported
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    linears = [name for name, module in packed_modules(model).items() if isinstance(module, nn.Linear)]
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == len(linears)
    assert all(a.i == 1 for node in nodes for a in node.attribute if a.name == "accuracy_level")
    gathers = sum(isinstance(module, nn.Embedding) for module in packed_modules(model).values())
    assert sum(node.op_type == "GatherBlockQuantized" for node in graph.node) == gathers
    names = [value.name for value in graph.input]
    assert names[:5] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key", "past_key_values.0.value"]
    assert [value.name for value in graph.output][:3] == ["logits", "present.0.key", "present.0.value"]
    axes = [dim.dim_param or dim.dim_value for dim in graph.input[3].type.tensor_type.shape.dim]
    assert axes[::2] == ["batch", "past"]
    assert not any(node.doc_string or node.metadata_props for node in graph.node)


def test_logits_are_those_of_the_float_path(exported: tuple[Any, Path], tokens: Tensor) -> None:
    model, folder = exported
    with torch.no_grad():
        expected = float_path(model)(tokens).logits
    assert_close(Session(folder)(tokens), expected)
    assert_close(Session(folder)(tokens[:1]), expected[:1])


def test_inputs_rounded_to_int8(exported: tuple[Any, Path], tokens: Tensor, tmp_path: Path) -> None:
    _, folder = exported
    copied = shutil.copytree(folder, tmp_path / "int8")
    write._round_inputs(copied / "model.onnx")
    graph = onnx.load(copied / "model.onnx", load_external_data=False).graph
    levels = [a.i for node in graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert levels == [4] * sum(node.op_type == "MatMulNBits" for node in graph.node)
    before, after = initializers(folder), initializers(copied)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    exact, rounded = Session(folder)(tokens), Session(copied)(tokens)
    assert (rounded - exact).abs().max() <= 0.1 * exact.abs().max()


def test_another_word_for_activations(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown activations 'int4'; choose int8 or float"):
        export_onnx(tiny("llama"), tmp_path / "out", byte_tokenizer, activations="int4")


def test_prefill_and_steps_are_one_pass(exported: tuple[Any, Path], tokens: Tensor) -> None:
    model, folder = exported
    with torch.no_grad():
        expected = float_path(model)(tokens).logits
    session = Session(folder)
    parts = [session(tokens[:, :9]), session(tokens[:, 9:13]), *(session(tokens[:, i : i + 1]) for i in range(13, 24))]
    assert_close(torch.cat(parts, 1), expected)
    session = Session(folder)
    assert_close(torch.cat([session(tokens[:1, i : i + 1]) for i in range(24)], 1), expected[:1])


def test_padding_on_the_left_is_masked(exported: tuple[Any, Path], tokens: Tensor) -> None:
    model, folder = exported
    mask = torch.ones_like(tokens)
    mask[1, :7] = 0
    with torch.no_grad():
        expected = float_path(model)(tokens[1:, 7:]).logits
    session = Session(folder)
    first = session(tokens[:, :12], mask[:, :12])
    assert_close(torch.cat([first, session(tokens[:, 12:], mask)], 1)[1:, 7:], expected)


def test_the_folder(exported: tuple[Any, Path], byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model, folder = exported
    names = {"config.json", "generation_config.json", "model.onnx", "model.onnx_data", "tokenizer.json"}
    assert names <= {file.name for file in folder.iterdir()}
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert (config["dtype"], "quantization_config" in config) == ("float32", False)
    text = "the cat sat"
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == byte_tokenizer(text)["input_ids"]
    script = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, folder / "model.onnx"], check=True)


def test_the_card(exported: tuple[Any, Path]) -> None:
    card = (exported[1] / "README.md").read_text()
    assert "library_name: onnx" in card
    assert f"# {exported[1].name}" in card


def test_a_changed_file_is_noticed(exported: tuple[Any, Path]) -> None:
    model, folder = exported
    changed = float_path(model)
    kinds = to_nbits(float_path(model))
    check_weights(folder / "model.onnx", changed, kinds)
    name, module = next((name, module) for name, module in packed_modules(changed).items() if "mlp" in name)
    found = probe(changed)
    check_logits(folder / "model.onnx", found)
    module.weight_packed[0] = module.weight_packed[2]
    with pytest.raises(ExportError, match=f"{name} does not read back"):
        check_weights(folder / "model.onnx", changed, kinds)
    found.logits[0, 7, 3] += 1e-3 * found.logits.abs().max()
    with pytest.raises(ExportError, match="does not compute what the model does: its logits differ by 1"):
        check_logits(folder / "model.onnx", found)


def small(scheme: str = "pot3", **config: Any) -> Any:
    model = tiny("llama", num_hidden_layers=1)
    potq.quantize(model, PoTConfig(scheme=QuantScheme(scheme), **config))
    return model


def test_refusals(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "out"
    with pytest.raises(ExportError, match=r"pot4-g64 exactly only as 8-bit/64.*--allow-8bit.*quantize to int4"):
        export_onnx(small("pot4"), path, byte_tokenizer)
    with pytest.raises(ExportError, match="no type that holds pot5-g64"):
        export_onnx(small("pot5"), path, byte_tokenizer, allow_8bit=True)
    with pytest.raises(ExportError, match="not quantized by potq"):
        export_onnx(tiny("llama"), path, byte_tokenizer)
    model = small(targets={"q_proj": QuantScheme("pot3", scale_dtype="e8m0")})
    model.model.layers[0].self_attn.q_proj.weight_scale[3] = 0
    with pytest.raises(ExportError, match=r"self_attn.q_proj does not fit MatMulNBits: a scale is beyond the range"):
        export_onnx(model, path, byte_tokenizer)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1))
    potq.quantize(mamba, PoTConfig("pot3"))
    with pytest.raises(ExportError, match="models of type 'mamba' cannot be exported to onnx"):
        export_onnx(mamba, path, byte_tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_what_torch_cannot_trace(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    class Reading(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., : int(x.sum().item()) + 10**6]

    model = small()
    model.model.norm = Reading()
    with pytest.raises(ExportError, match=r"torch.onnx.export cannot trace LlamaForCausalLM: \S"):
        export_onnx(model, tmp_path / "out", byte_tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_existing_targets(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="--force"):
        export_onnx(small(), path, byte_tokenizer)
    with pytest.raises(CheckpointError, match="is not a model folder"):
        export_onnx(small(), path, byte_tokenizer, force=True)
    assert (path / "mine").read_text() == "mine"


def test_missing_packages(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(MissingDependencyError, match=r"needs onnxscript: pip install 'potq\[onnx\]'"):
        export_onnx(small(), tmp_path / "out", byte_tokenizer)


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: Any, path: Path, external_data: str) -> None:
        path.with_name(external_data).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def traced(*arguments: Any) -> None:
        """Quick."""

    monkeypatch.setattr(write, "trace", traced)
    monkeypatch.setattr(onnx_ir, "save", full)
    with pytest.raises(CheckpointError, match="no room for"):
        export_onnx(small(), tmp_path / "out", byte_tokenizer)
    usage = namedtuple("Usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="no room for"):
        export_onnx(small(), tmp_path / "out", byte_tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_of_a_multimodal_model_the_language_model_is_written(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    tower = CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    text = tiny("llama-biased", num_hidden_layers=1).config
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=tower, image_token_index=259)).eval()
    potq.quantize(model, PoTConfig("pot3"))
    export_onnx(
        model, tmp_path / "onnx", byte_tokenizer, allow_8bit=True
    )  # its logits are compared before the folder has its name
    assert (tmp_path / "onnx" / "model.onnx").is_file()
