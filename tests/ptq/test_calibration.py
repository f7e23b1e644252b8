"""Calibration: statistics of the inputs, errors of the outputs, and text or models that give none."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import potq
from potq.config import Effort
from potq.errors import DataError, ModelError
from potq.nn.report import decibels
from potq.numerics.scheme import QuantScheme
from potq.ptq import run
from potq.ptq.algorithms.rtn import rtn
from potq.ptq.calibration import check_batches, input_mean_squares, mean_squared_gradients, output_snr

DOWN = "model.layers.1.mlp.down_proj"
UP = "model.layers.1.mlp.up_proj"


def recorded_inputs(model: nn.Module, name: str, batches: list[torch.Tensor]) -> torch.Tensor:
    """Every input row that the module sees."""
    rows: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: rows.append(args[0].detach()))
    for batch in batches:
        model(batch)
    handle.remove()
    return torch.cat([row.reshape(-1, row.shape[-1]) for row in rows])


def test_mean_squares_are_those_of_the_inputs(tiny_model: Any, tokens: torch.Tensor) -> None:
    batches = [tokens, tokens[:1, :7] + 1]  # of different sizes: every token counts the same
    found = input_mean_squares(tiny_model, [UP, DOWN], batches)
    assert list(found) == [UP, DOWN]
    for name, mean in found.items():
        expected = recorded_inputs(tiny_model, name, batches).double().square().mean(0)
        assert mean.dtype == torch.float32
        assert torch.allclose(mean.double(), expected, rtol=1e-5)


def test_output_errors_are_those_of_the_outputs(tiny_model: Any, tokens: torch.Tensor) -> None:
    full = {name: tiny_model.get_submodule(name).weight.detach().clone() for name in (UP, "model.embed_tokens")}
    inputs = recorded_inputs(tiny_model, UP, [tokens]).double()
    report = potq.quantize(tiny_model, potq.PoTConfig("pot4"), [tokens])
    entries = {entry.name: entry for entry in report.modules}
    clean = inputs @ full[UP].double().t()
    noise = inputs @ tiny_model.get_submodule(UP).weight.double().t() - clean
    found = entries[UP].output_snr_db
    assert found == pytest.approx(decibels(float(clean.square().sum()), float(noise.square().sum())), abs=1e-3)
    rows = full["model.embed_tokens"][tokens.flatten()].double()
    error = tiny_model.get_submodule("model.embed_tokens").weight[tokens.flatten()].double() - rows
    found = entries["model.embed_tokens"].output_snr_db
    assert found == pytest.approx(decibels(float(rows.square().sum()), float(error.square().sum())), abs=1e-3)


def test_output_errors_are_of_the_first_tokens(
    tiny_model: Any, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model each token costs three products with every weight."""
    config, models = potq.PoTConfig("pot4", effort="fast"), [copy.deepcopy(tiny_model) for _ in range(3)]
    first, whole = (potq.quantize(models.pop(), config, text) for text in ([tokens[:1]], [tokens]))
    monkeypatch.setattr(run, "REPORTED_TOKENS", tokens.shape[1])
    found = potq.quantize(models.pop(), config, [tokens])
    assert found.modules == first.modules != whole.modules


def test_weighted_scales_help_where_the_inputs_are_large(tiny_model: Any, tokens: torch.Tensor, tiny_folder: Any) -> None:
    plain = potq.load(tiny_folder)
    mse = potq.quantize(plain, potq.PoTConfig("pot3", effort="fast"), [tokens])
    weighted = potq.quantize(tiny_model, potq.PoTConfig("pot3", scale_method="weighted"), iter([tokens]))
    gains = [
        after.output_snr_db - before.output_snr_db
        for before, after in zip(mse.modules, weighted.modules, strict=True)
        if after.kind == "linear" and after.output_snr_db is not None and before.output_snr_db is not None
    ]
    assert len(gains) == 14
    assert sum(gains) > 0
    assert {entry.algorithm for entry in weighted.modules} == {"rtn/weighted-exact", "rtn/mse-16"}
    assert next(entry for entry in weighted.modules if entry.kind == "embedding").algorithm == "rtn/mse-16"


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_model_changes(tiny_model: Any, tokens: torch.Tensor, training: bool) -> None:
    tiny_model.train(training)
    before = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    input_mean_squares(tiny_model, [UP], [tokens])
    assert tiny_model.training is training
    assert not any(module._forward_hooks for module in tiny_model.modules())
    assert all(torch.equal(value, before[key]) for key, value in tiny_model.state_dict().items())


def test_hooks_are_removed_when_the_model_fails(tiny_model: Any) -> None:
    tiny_model.train()
    with pytest.raises(IndexError):
        input_mean_squares(tiny_model, [UP], [torch.tensor([[10_000]])])
    assert not any(module._forward_hooks for module in tiny_model.modules())
    assert tiny_model.training


@pytest.mark.parametrize("trained", [True, False])
def test_mean_squared_gradients_are_those_of_every_window(tiny_model: Any, tokens: torch.Tensor, trained: bool) -> None:
    tiny_model.requires_grad_(trained)
    batches = [tokens, tokens[:1, :7] + 1]
    found = mean_squared_gradients(tiny_model, [UP, DOWN], batches)
    assert all(parameter.requires_grad == trained and parameter.grad is None for parameter in tiny_model.parameters())
    tiny_model.requires_grad_(True)
    sums = dict.fromkeys((UP, DOWN), 0.0)
    for window in (tokens[:1], tokens[1:], batches[1]):
        tiny_model.zero_grad()
        logits = tiny_model(window).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, window[0, 1:]).backward()
        for name in sums:
            sums[name] = sums[name] + tiny_model.get_submodule(name).weight.grad.square() / 3
    assert list(found) == [UP, DOWN]
    for name, expected in sums.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-12)


def test_gradients_of_transposed_weights_stand_as_out_by_in(tokens: torch.Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    found = mean_squared_gradients(model, ["transformer.h.0.mlp.c_fc"], [tokens[:1]])["transformer.h.0.mlp.c_fc"]
    model.eval()(tokens[:1], labels=tokens[:1]).loss.backward()
    torch.testing.assert_close(found, model.transformer.h[0].mlp.c_fc.weight.grad.square().t())


def test_fisher_scales_lower_the_error_weighted_by_gradients(tiny_model: Any, tokens: torch.Tensor) -> None:
    weights = {name: tiny_model.get_submodule(name).weight.detach().clone() for name in (UP, DOWN)}
    importance = mean_squared_gradients(tiny_model, [UP, DOWN], [tokens])
    report = potq.quantize(tiny_model, potq.PoTConfig("pot3", scale_method="fisher"), [tokens])
    assert {entry.algorithm for entry in report.modules if entry.kind == "linear"} == {"rtn/fisher-exact"}
    for name, weight in weights.items():
        expected = rtn(weight, tiny_model.get_submodule(name).scheme, importance[name], method="weighted")
        assert torch.equal(tiny_model.get_submodule(name).quantized.packed, expected.packed)
        fisher = ((expected.dequantize() - weight).square() * importance[name]).sum()
        plain = ((rtn(weight, expected.scheme).dequantize() - weight).square() * importance[name]).sum()
        assert fisher < plain


# ---- what is refused


def test_gradients_that_are_not_finite_or_never_come(tiny_model: Any, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        tiny_model.model.layers[1].input_layernorm.weight[0] = torch.inf
    with pytest.raises(ModelError, match=rf"{UP}: its gradients on the calibration text are NaN or infinite; load"):
        mean_squared_gradients(tiny_model, [UP], [tokens])
    tiny_model.spare = nn.Linear(4, 4)
    with pytest.raises(ModelError, match="the calibration never reaches spare; ignore"):
        mean_squared_gradients(tiny_model, [UP, "spare"], [tokens])


@pytest.mark.parametrize(
    "calibration",
    [
        [torch.zeros(2, 8)],
        [torch.zeros(8, dtype=torch.long)],
        [torch.zeros(1, 0, dtype=torch.long)],
        ["a text"],
        [[1, 2, 3]],
    ],
    ids=["float", "1-D", "no token", "text", "list"],
)
def test_calibration_that_is_no_token_batch(tiny_model: Any, calibration: Any) -> None:
    with pytest.raises(DataError, match=r"calibration must be \(batch, length\) integer tensors of token ids"):
        potq.quantize(tiny_model, potq.PoTConfig("pot4"), calibration)
    assert not hasattr(tiny_model, "quant_report")


@pytest.mark.parametrize("calibration", [[], iter(())])
def test_empty_calibration(tiny_model: Any, calibration: Any) -> None:
    with pytest.raises(DataError, match=r"calibration is empty; give at least one \(batch, length\) tensor"):
        potq.quantize(tiny_model, potq.PoTConfig("pot4", scale_method="weighted"), calibration)
    assert not hasattr(tiny_model, "quant_report")


def test_batches_of_every_integer_kind(tiny_model: Any) -> None:
    batches = (torch.zeros(1, 2, dtype=dtype) for dtype in (torch.int32, torch.int64))
    assert [batch.dtype for batch in check_batches(batches, tiny_model)] == [torch.int32, torch.int64]


@pytest.mark.parametrize("effort", ["fast", "balanced", "best", Effort(scope="block", codes=False, epochs=1)])
def test_a_layer_that_calibration_never_reaches_is_rounded(tiny_model: Any, tokens: torch.Tensor, effort: Any) -> None:
    spare = tiny_model.model.layers[0].mlp.spare = nn.Linear(64, 64)
    expected = rtn(spare.weight.detach(), QuantScheme("pot4"), method="mse")
    report = potq.quantize(tiny_model, potq.PoTConfig("pot4", effort=effort), [tokens])
    entries = {entry.name: entry for entry in report.modules}
    entry = entries.pop("model.layers.0.mlp.spare")
    assert entry.algorithm == ("rtn/mse-exact" if effort == "fast" else "rtn/mse (no text reaches it)")
    assert entry.output_snr_db is None
    assert all(other.output_snr_db is not None for other in entries.values())
    assert torch.equal(tiny_model.get_submodule(entry.name).quantized.packed, expected.packed)


def test_a_layer_that_calibration_never_reaches(tiny_model: Any, tokens: torch.Tensor) -> None:
    tiny_model.model.layers[0].mlp.spare = nn.Linear(64, 64)
    config = potq.PoTConfig("pot4", scale_method="weighted")
    with pytest.raises(ModelError, match=r"the calibration never reaches model\.layers\.0\.mlp\.spare; ignore"):
        potq.quantize(tiny_model, config, [tokens])
    assert type(tiny_model.model.layers[0].mlp.up_proj) is nn.Linear
    remedy = potq.PoTConfig("pot4", scale_method="weighted", ignore=["spare"])
    report = potq.quantize(tiny_model, remedy, [tokens])
    assert [entry.name for entry in report.skipped] == ["model.layers.0.mlp.spare"]


def test_activations_that_are_not_finite(tiny_model: Any, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        tiny_model.model.layers[1].input_layernorm.weight[0] = torch.inf
    with pytest.raises(ModelError, match=r"layers\.1\..*: its inputs on the calibration text are NaN or infinite; load"):
        potq.quantize(tiny_model, potq.PoTConfig("pot4", scale_method="weighted"), [tokens])


def test_token_ids_beyond_the_vocabulary(tiny_model: Any) -> None:
    with pytest.raises(potq.PotqError, match="token"):
        potq.quantize(tiny_model, potq.PoTConfig("pot4"), [torch.tensor([[10_000]])])


def test_output_snr_of_an_exact_weight(tiny_model: Any, tokens: torch.Tensor) -> None:
    from potq.numerics.tensor import QuantizedWeight

    scheme = potq.QuantScheme("int8")
    layer = tiny_model.get_submodule(UP)
    scale = torch.full(scheme.scale_shape(*layer.weight.shape), 2.0**-3, dtype=torch.float16)
    quantized = QuantizedWeight.from_scale(layer.weight, scale, scheme)
    layer.weight = nn.Parameter(quantized.dequantize())
    assert output_snr(tiny_model, {UP: lambda: quantized}, [tokens]) == {UP: 200.0}


@pytest.mark.parametrize("wrong", [-1, 260])
def test_token_ids_outside_the_vocabulary(wrong: int, tiny_model: Any) -> None:
    with pytest.raises(DataError, match=r"token ids .*the model knows 0\.\.259; use its own tokenizer"):
        check_batches([torch.tensor([[1, 2]]), torch.tensor([[3, wrong]])], tiny_model)
    silent: Any = nn.Module()
    silent.config = SimpleNamespace()
    with pytest.raises(DataError, match="no negative ones"):
        check_batches([torch.tensor([[-1]])], silent)


def test_windows_longer_than_the_model_knows(tiny_model: Any) -> None:
    limit = tiny_model.config.max_position_embeddings
    with pytest.raises(DataError, match=f"windows of {limit + 1} tokens exceed the model's limit of {limit}; cut"):
        potq.quantize(tiny_model, potq.PoTConfig("pot4"), [torch.zeros(1, limit + 1, dtype=torch.long)])
