"""The integer model beside the float model: near in its logits, causal to the bit, clear about what it does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import potq
from potq.errors import DataError, ModelError
from potq.evaluate.perplexity import perplexity
from potq.hardware.model import IntegerModel
from potq.kernels import set_activations

TOKENS = [3, 90, 17, 44, 200, 5, 6, 7, 3, 90, 91, 92]
LLAMA: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {"vocab_size": 260, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
MODELS = {
    "llama": ("Llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama-biased": ("Llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 32}),
    "qwen2": ("Qwen2", LLAMA),
    "gpt2": ("GPT2", GPT2),
}


def random_model(name: str, scheme: str = "pot4", *, quantized: bool = True, **changes: Any) -> Any:
    """A packed model (or not yet) whose biases and norms are not what they are at the start."""
    kind, settings = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config = getattr(transformers, f"{kind}Config")(**settings, **changes, bos_token_id=None, eos_token_id=0)
        model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
        for key, parameter in model.named_parameters():
            spread = 0.15 if parameter.ndim == 2 else 0.1
            torch.nn.init.normal_(parameter, float(key.endswith("weight") and parameter.ndim == 1), spread)
    model.eval().requires_grad_(False)
    if quantized:
        potq.quantize(model, potq.PoTConfig(scheme, embedding="int8"))
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("one_thread")
def test_logits_are_near_the_packed_models(name: str) -> None:
    model = random_model(name)
    set_activations(model, "float")
    expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    found = IntegerModel.from_packed(model).logits(TOKENS) / 65536
    assert np.abs(found - expected).std() < 0.06 * expected.std()  # 8-bit inputs; a random model amplifies them


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_text_does_not_change_what_came_before(name: str) -> None:
    model = IntegerModel.from_packed(random_model(name, "pot3"))
    whole = model.logits(TOKENS)
    for length in (1, 5):
        np.testing.assert_array_equal(model.logits(TOKENS[:length]), whole[:length])
    expected = list(TOKENS)
    for _ in range(3):
        expected.append(int(model.logits(expected)[-1].argmax()))
    assert list(model.generate(TOKENS, 3)) == expected[-3:]
    assert list(model.generate(TOKENS, 3, end=expected[-3:-2])) == expected[-3:-2]


def test_a_matrix_that_is_not_packed_is_named(tiny_folder: Path) -> None:
    floats = potq.load(tiny_folder, potq.PoTConfig("pot4", embedding=None))
    with pytest.raises(ModelError, match=r"model\.embed_tokens is not packed.*--embedding int8"):
        IntegerModel.from_packed(floats)


@pytest.mark.usefixtures("one_thread")
def test_stories_cost_no_perplexity(data_dir: Path) -> None:
    model = potq.load(data_dir / "tinystories-656k", potq.PoTConfig("pot3", embedding="int8"))
    text = (data_dir / "tinystories" / "tinystories_sample_2MiB.txt").read_text(encoding="utf-8")[:4000]
    ids = torch.tensor(potq.load_tokenizer(data_dir / "tinystories-656k")(text)["input_ids"])[:512]
    integers = IntegerModel.from_packed(model, context=256).perplexity(ids)
    assert integers.windows == 2
    assert integers.perplexity < 1.02 * perplexity(model, ids, window=256).perplexity


def test_what_has_no_integer_form_is_refused() -> None:
    llama = random_model("llama")
    with pytest.raises(DataError, match="invalid context 65; the model has 1 to 64"):
        IntegerModel.from_packed(llama, context=65)
    with pytest.raises(DataError, match="invalid context 33; the model has 1 to 32"):
        IntegerModel.from_packed(random_model("mistral"), context=33)
    model = IntegerModel.from_packed(llama, context=8)
    with pytest.raises(DataError, match="12 tokens; the integer model takes 1 to 8"):
        model.logits(TOKENS)
    with pytest.raises(DataError, match=r"token ids 260\.\.260"):
        model.logits([260])
    with pytest.raises(DataError, match="invalid window 9"):
        model.perplexity(torch.zeros(20, dtype=torch.long), window=9)
    llama.config.model_type = "gemma"
    with pytest.raises(ModelError, match="type 'gemma' have no integer form"):
        IntegerModel.from_packed(llama)
    with pytest.raises(ModelError, match="scores are scaled otherwise"):
        IntegerModel.from_packed(random_model("gpt2", scale_attn_by_inverse_layer_idx=True))
