"""Products of a real layer: whole dot products, as the layer would compute them with rounded weights and activations."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from potq.errors import ConfigError, ModelError
from potq.hardware.gates.stream import in_integers, inputs_of, layer_stream
from potq.numerics.scheme import QuantScheme
from potq.ptq.algorithms.rtn import rtn

LAYER = "model.layers.1.mlp.gate_proj"


def test_inputs_are_what_the_layer_is_given(tiny_model: LlamaForCausalLM, tokens: torch.Tensor) -> None:
    weight, inputs = inputs_of(tiny_model, LAYER, tokens[0])
    assert torch.equal(weight, tiny_model.get_submodule(LAYER).weight)
    assert inputs.shape == (24, 64)
    assert not tiny_model.get_submodule(LAYER)._forward_pre_hooks


def test_a_layer_that_is_not_there_is_named(tiny_model: LlamaForCausalLM, tokens: torch.Tensor) -> None:
    with pytest.raises(ModelError, match=r"no linear 'mlp'; it has model\.layers\.0\.self_attn\.q_proj and 14 more"):
        inputs_of(tiny_model, "mlp", tokens[0])


@pytest.mark.parametrize("bits", [8, 4])
def test_activations_fill_their_bits_for_each_token_and_group(bits: int) -> None:
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    inputs[1, :16] = 0
    integers, step = in_integers(inputs, 16, bits)
    most = 2 ** (bits - 1) - 1
    largest = integers.abs().amax(-1)
    assert largest[1, 0] == 0
    assert set(largest.flatten().tolist()) == {0.0, float(most)}
    assert ((integers * step).flatten(-2) - inputs).abs().max() <= step.max() / 2 * 1.001
    with pytest.raises(ConfigError, match="groups of 48 do not divide 64 columns"):
        in_integers(inputs, 48, bits)


@pytest.mark.parametrize("preset", ["pot3s", "mxpot", "int4"])
def test_a_stream_is_whole_dot_products_of_the_rounded_layer(preset: str) -> None:
    chosen = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(8, 64, generator=chosen), torch.randn(1, 64, generator=chosen)
    scheme = QuantScheme(preset, group_size=32)
    stream = layer_stream(weight, inputs, scheme, dots=5)
    integers = in_integers(inputs, 32, 8)[0].flatten().int().tolist()
    assert stream.activations == tuple(integers * 5)
    rows = {tuple(row) for row in rtn(weight, scheme).codes().tolist()}
    assert len(stream.codes) == 5 * 64
    assert all(stream.codes[place : place + 64] in rows for place in range(0, 320, 64))
    assert layer_stream(weight, inputs, scheme, dots=5) == stream
