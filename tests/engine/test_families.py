"""The engine's logits against the Hugging Face modules on the same kernels, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.cache_utils import DynamicLayer

import potq
from potq import Engine, PoTConfig, kernels
from potq.engine.scheduler import Scheduler

HIDDEN = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
GPT2 = {"vocab_size": 131, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "logits_scaling": 5.0,
}
GEMMA3 = {
    "head_dim": 16,
    "query_pre_attn_scalar": 9,
    "sliding_window": 20,
    "layer_types": ["sliding_attention", "full_attention"],
}
EXPERTS = {"head_dim": 16, "moe_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 2}
SOME_DENSE = {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1]}
ALL_CHOSEN = {"num_experts": 20, "num_experts_per_tok": 20}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", HIDDEN),
    "llama-tied": ("Llama", {**HIDDEN, "tie_word_embeddings": True}),
    "llama-biased": ("Llama", {**HIDDEN, "attention_bias": True, "mlp_bias": True}),
    "llama-every-head-its-own": ("Llama", {**HIDDEN, "num_key_value_heads": 4}),
    "llama-one-key-head": ("Llama", {**HIDDEN, "num_key_value_heads": 1}),
    "llama-odd-heads": (
        "Llama",
        {**HIDDEN, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 22, "hidden_size": 66},
    ),
    "llama-llama3-rope": ("Llama", {**HIDDEN, "rope_parameters": LLAMA3}),
    "llama-linear-rope": ("Llama", {**HIDDEN, "rope_parameters": LINEAR}),
    "qwen2": ("Qwen2", HIDDEN),
    "qwen2-window": (
        "Qwen2",
        {**HIDDEN, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {**HIDDEN, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-biased": ("Qwen3", {**HIDDEN, "head_dim": 16, "attention_bias": True}),
    "qwen3-moe": ("Qwen3Moe", {**HIDDEN, **EXPERTS}),
    "qwen3-moe-tied": ("Qwen3Moe", {**HIDDEN, **EXPERTS, "tie_word_embeddings": True, "norm_topk_prob": True}),
    "qwen3-moe-some-dense": (
        "Qwen3Moe",
        {**HIDDEN, **EXPERTS, **SOME_DENSE, "attention_bias": True},
    ),
    "qwen3-moe-all": (
        "Qwen3Moe",
        {**HIDDEN, **EXPERTS, **ALL_CHOSEN, "use_sliding_window": True, "sliding_window": 20},
    ),
    "qwen3-moe-none": ("Qwen3Moe", {**HIDDEN, **EXPERTS, "num_experts": 0}),
    "olmoe": ("Olmoe", {**HIDDEN, "num_experts": 5, "num_experts_per_tok": 3}),
    "olmoe-tied": (
        "Olmoe",
        {**HIDDEN, **ALL_CHOSEN, "tie_word_embeddings": True, "norm_topk_prob": True, "attention_bias": True},
    ),
    "mixtral": ("Mixtral", {**HIDDEN, "num_local_experts": 5}),
    "mixtral-tied": (
        "Mixtral",
        {**HIDDEN, "num_local_experts": 5, "num_experts_per_tok": 3, "tie_word_embeddings": True, "sliding_window": 17},
    ),
    "mistral": ("Mistral", {**HIDDEN, "sliding_window": None}),
    "mistral-window": ("Mistral", {**HIDDEN, "sliding_window": 17}),
    "smollm3": ("SmolLM3", {**HIDDEN, "num_hidden_layers": 4}),
    "smollm3-untied": (
        "SmolLM3",
        {**HIDDEN, "tie_word_embeddings": False, "no_rope_layers": [0, 1], "attention_bias": True, "mlp_bias": True},
    ),
    "smollm3-window": ("SmolLM3", {**HIDDEN, "no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 20}),
    "olmo2": ("Olmo2", HIDDEN),
    "olmo2-tied": ("Olmo2", {**HIDDEN, "tie_word_embeddings": True, "attention_bias": True}),
    "granite": ("Granite", {**HIDDEN, **GRANITE}),
    "granite-tied": (
        "Granite",
        {**HIDDEN, **GRANITE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "gemma3": ("Gemma3Text", {**HIDDEN, **GEMMA3}),
    "gemma3-untied": ("Gemma3Text", {**HIDDEN, **GEMMA3, "tie_word_embeddings": False, "attention_bias": True}),
    "phi3": ("Phi3", HIDDEN),
    "phi3-tied": ("Phi3", {**HIDDEN, "tie_word_embeddings": True, "sliding_window": 17, "rope_parameters": PARTIAL}),
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied": ("GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 100}),
    "gpt2-gelu": ("GPT2", {**GPT2, "activation_function": "gelu"}),
    "gpt2-relu": ("GPT2", {**GPT2, "activation_function": "relu", "scale_attn_weights": False}),
}
SCHEMES: dict[str, dict[str, Any]] = {
    "pot4": {"preset": "pot4"},
    "pot3": {"preset": "pot3", "embedding": "pot3"},
    "pot2": {"preset": "pot2", "embedding": "pot4"},
    "pot3s": {"preset": "pot3s", "embedding": "apot3s"},
    "pot2t": {"preset": "pot2t", "embedding": "apot3t"},
    "pot2t-24": {"preset": "pot2t", "group_size": 24},  # dequantized
    "mxfp4": {"preset": "mxfp4", "embedding": None},
    "mxpot-row": {"preset": "mxpot", "row_scale": True},
    "pot6": {"preset": "pot6", "group_size": 20},
    "mixed": {"preset": "apot4", "group_size": "row", "ignore": ["mlp.*"], "targets": {r"^.*\.0\..*": "pot3"}},
    "tensor": {"preset": "int8", "group_size": "tensor"},
}


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model whose outputs depend on everything: biases and norms are not what they are at the start."""
    family, settings = MODELS[name]
    torch.manual_seed(7)
    config = getattr(transformers, f"{family}Config")(**settings, bos_token_id=0, eos_token_id=1, pad_token_id=None)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        else:
            parameter.data.mul_(3)
    return model.to(dtype)


def rounded_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values in float16, as the engine keeps them."""
    update = DynamicLayer.update

    def rounding(self: Any, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        return update(self, keys.half().to(keys), values.half().to(values), *args, **kwargs)

    monkeypatch.setattr(DynamicLayer, "update", rounding)
    sliding = transformers.cache_utils.DynamicSlidingWindowLayer
    if "update" in vars(sliding):
        update_sliding = sliding.update

        def rounding_sliding(self: Any, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
            return update_sliding(self, keys.half().to(keys), values.half().to(values), *args, **kwargs)

        monkeypatch.setattr(sliding, "update", rounding_sliding)


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference of a token's logits, relative to the largest of them."""
    return float(((found - expected).abs().amax(-1) / expected.abs().amax(-1)).max())


def reference(model: Any, ids: Tensor, activations: kernels.Activations = "float") -> Tensor:
    kernels.set_activations(model, activations)
    with torch.inference_mode():
        return model(ids[None], use_cache=True).logits[0].float()


def ids_of(name: str, count: int = 90) -> Tensor:
    return torch.randint(0, 131, (count,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_the_modules_logits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded_cache(monkeypatch)
    model = tiny(name)
    potq.quantize(model, PoTConfig("pot4", group_size=32))
    potq.save(model, tmp_path / "m")
    ids = ids_of(name)
    assert error(Engine(tmp_path / "m", activations="float").logits(ids), reference(model, ids)) < 1e-3
    assert error(Engine(tmp_path / "m").logits(ids), reference(model, ids, "int8")) < 0.05


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "qwen3-moe"])
def test_every_kind_of_scheme(name: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded_cache(monkeypatch)
    settings = dict(SCHEMES[scheme])
    model = tiny(name)
    potq.quantize(model, PoTConfig(settings.pop("preset"), **settings))
    potq.save(model, tmp_path / "m")
    ids = ids_of(name)
    assert error(Engine(tmp_path / "m", activations="float").logits(ids), reference(model, ids)) < 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"targets": {r"experts\.down_proj": "pot2", r"^model\.layers\.1\.mlp\.experts\.gate_up_proj$": "mxpot"}},
        {"ignore": [r"experts\.gate_up_proj"]},
        {"ignore": [r"experts\..*"]},
    ],
    ids=["schemes", "half", "none"],
)
@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral"])
def test_experts_in_several_schemes(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded_cache(monkeypatch)
    model = tiny(name)
    potq.quantize(model, PoTConfig("pot4", **settings))
    potq.save(model, tmp_path / "m")
    ids = ids_of(name)
    assert error(Engine(tmp_path / "m", activations="float").logits(ids), reference(model, ids)) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "gpt2", "qwen3-moe-some-dense", "olmoe", "mixtral"])
def test_full_precision_models(name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded_cache(monkeypatch)
    tiny(name, dtype).save_pretrained(tmp_path / "m")
    ids = ids_of(name)
    # read again: `to` rounds a model's rotations too, which no file holds
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    with torch.inference_mode():
        expected = model(ids[None], use_cache=True).logits[0]
    assert error(Engine(tmp_path / "m").logits(ids), expected) < 1e-3


def test_a_tied_weight_is_found_under_the_heads_name(tmp_path: Path) -> None:
    tiny("llama-tied").save_pretrained(tmp_path / "m")
    ids = ids_of("llama-tied")
    expected = Engine(tmp_path / "m").logits(ids)
    weights = load_file(tmp_path / "m/model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, tmp_path / "m/model.safetensors")
    assert torch.equal(Engine(tmp_path / "m").logits(ids), expected)


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gpt2", "qwen3-moe-all", "qwen3-moe-some-dense"])
def test_chunks_and_threads_change_no_bit(name: str, activations: Any, tmp_path: Path) -> None:
    model = tiny(name)
    potq.quantize(model, PoTConfig("apot4", group_size=32))
    potq.save(model, tmp_path / "m")
    ids = ids_of(name).tolist()
    engine = Engine(tmp_path / "m", activations=activations, threads=2)
    whole = engine.logits(ids)
    for cuts in ([1] * 90, [7, 1, 60, 22], [89, 1]):
        starts = [sum(cuts[:i]) for i in range(len(cuts))]
        parts = [engine._append(ids[start : start + cut], behind=start) for start, cut in zip(starts, cuts, strict=True)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(engine._append(ids[50:], behind=50), whole[50:])
    for threads in (1, 3):
        other = Engine(tmp_path / "m", activations=activations, threads=threads)
        assert torch.equal(other.logits(ids), whole)
        assert torch.equal(other._append(ids, behind=0, all=False), whole[-1:])


@pytest.mark.parametrize("packed", [True, False])
def test_experts_in_several_files_are_in_memory_once(packed: bool, tmp_path: Path) -> None:
    model = tiny("qwen3-moe")
    if packed:
        potq.quantize(model, PoTConfig("pot4", group_size=32))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="30KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = Engine(tmp_path / "one"), Engine(tmp_path / "many")
    ids = ids_of("qwen3-moe")
    assert torch.equal(one.logits(ids), many.logits(ids))
    stored = (tmp_path / "one/model.safetensors").stat().st_size
    assert one.weight_bytes == many.weight_bytes < 1.3 * stored  # columns and rows are filled up


def test_a_text_of_experts_is_the_same_among_others(tmp_path: Path) -> None:
    model = tiny("qwen3-moe-all")
    potq.quantize(model, PoTConfig("pot3", group_size=32))
    potq.save(model, tmp_path / "m")
    prompts = [ids_of("", 3 + 7 * i).tolist()[i:] for i in range(9)]
    engine = Engine(tmp_path / "m", threads=2)
    alone = [list(engine.generate(prompt, max_new_tokens=12, stop_token_ids=()).finish().ids) for prompt in prompts]
    scheduler = Scheduler(engine, slots=4, chunk=16)
    numbers = [scheduler.submit(prompt, max_new=12, stop_tokens=()) for prompt in prompts]
    found: dict[int, list[int]] = {number: [] for number in numbers}
    while not scheduler.idle:
        for event in scheduler.step():
            if event.token is not None:
                found[event.request].append(event.token)
    assert list(found.values()) == alone
