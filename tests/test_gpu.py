"""A whole model on a CUDA GPU, where there is one: quantized and trained there, saved, loaded, compiled, generating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import potq
from potq.kernels import explain
from ranks_helpers import windows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
TEXT = windows()


@pytest.fixture(scope="module")
def folder(_tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model in bfloat16, linears of 64 and 160 columns."""
    out = tmp_path_factory.mktemp("gpu") / "packed"
    model = potq.load(_tiny_source, potq.PoTConfig("pot4", group_size=32), dtype="bfloat16")
    potq.save(model, out, potq.load_tokenizer(_tiny_source))
    return out


def _near(found: Tensor, expected: Tensor) -> None:
    """As near as sums of bfloat16 in another order are."""
    assert (found.float().cpu() - expected.float()).norm() <= 0.02 * expected.float().norm()


def test_logits_are_the_references(folder: Path, tokens: Tensor) -> None:
    model = potq.load(folder, device="cuda")
    assert explain(model.model.layers[0].mlp.up_proj).backend == "triton"
    with torch.no_grad():
        found = model(tokens.to("cuda")).logits
        expected = potq.load(folder, dtype="float32")(tokens).logits
    _near(found, expected)


def test_it_writes_as_its_dequantized_copy(folder: Path, tokens: Tensor) -> None:
    model = potq.load(folder, device="cuda")
    text = model.generate(tokens.to("cuda"), max_new_tokens=16, do_sample=False)
    again = model.generate(tokens.to("cuda"), max_new_tokens=16, do_sample=False)
    assert text.shape == (2, 40)
    assert torch.equal(text, again)


def test_a_compiled_model_computes_the_same(folder: Path, tokens: Tensor) -> None:
    model = potq.load(folder, device="cuda")
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        _near(compiled(tokens.to("cuda")).logits, model(tokens.to("cuda")).logits.cpu())


def test_a_product_is_captured_in_a_graph(folder: Path) -> None:
    linear = potq.load(folder, device="cuda").model.layers[0].mlp.up_proj
    x = torch.randn(1, 64, device="cuda").bfloat16()
    with torch.no_grad():
        expected = linear(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = linear(x)
    graph.replay()
    assert torch.equal(found, expected)


def test_gradients_reach_the_inputs(folder: Path) -> None:
    linear = potq.load(folder, device="cuda").model.layers[0].mlp.up_proj
    x = torch.randn(3, 64, device="cuda").bfloat16().requires_grad_()
    linear(x).sum().backward()
    expected = torch.ones(3, linear.weight.shape[0], device="cuda").bfloat16() @ linear.weight
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("scheme", ["pot3", "apot4", "pot3:scale_dtype=e8m0:row_scale=true"])
@pytest.mark.parametrize("effort", ["fast", "balanced", "best", "potptq"])
def test_a_model_is_calibrated_where_it_is(effort: str, scheme: str, tiny_folder: Path, tmp_path: Path) -> None:
    config = potq.PoTConfig(scheme, group_size=32, effort=effort)
    reports, models = [], []
    for device in ("cpu", "cuda"):
        model: Any = potq.load(tiny_folder, device=device)
        reports.append(potq.quantize(model, config, None if effort == "fast" else TEXT))
        models.append(model)
    assert {tensor.device.type for tensor in models[1].state_dict().values()} == {"cuda"}
    with torch.no_grad():
        on_cpu, on_gpu = (model(TEXT[0].to(model.device), labels=TEXT[0].to(model.device)).loss for model in models)
    assert abs(on_gpu.item() - on_cpu.item()) <= 0.1 * on_cpu.item()
    potq.save(models[1], tmp_path / "out")
    again = potq.load(tmp_path / "out", device="cuda").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in models[1].state_dict().items())


def test_training_runs(tiny_folder: Path) -> None:
    from potq.qat import convert, prepare

    model = potq.load(tiny_folder, device="cuda")
    prepare(model, potq.PoTConfig("pot3", group_size=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        ids = TEXT[0].to("cuda")
        loss = model(ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    convert(model)
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() < losses[0]
