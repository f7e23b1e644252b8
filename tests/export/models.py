"""Tiny random models that the tests export."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 263  # three more than the tokenizer has

LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA),
    "llama-tied": ("Llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama-biased": ("Llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("Llama", {**LLAMA, "head_dim": 32}),
    "llama-linear-rope": ("Llama", {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama-llama3-rope": ("Llama", {**LLAMA, "rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 96}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen2-tied": ("Qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {**LLAMA, "use_sliding_window": True, "sliding_window": 96, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 32}),
    "qwen3-tied": ("Qwen3", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-linear-rope": (
        "Qwen3",
        {**LLAMA, "head_dim": 16, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied": ("GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 96}),
}


def tiny(name: str, **changes: Any) -> Any:
    """A random model whose outputs depend on everything: biases and norms are not what they are at the start."""
    kind, settings = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = getattr(transformers, f"{kind}Config")(
            **(settings | changes), bos_token_id=None, eos_token_id=0, pad_token_id=None
        )
        model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
        for module in model.modules():
            for key, parameter in module.named_parameters(recurse=False):
                spread = 0.15 if isinstance(module, nn.Embedding) or parameter.ndim == 2 else 0.1
                nn.init.normal_(parameter, float(key == "weight" and parameter.ndim == 1), spread)
    return model.eval().requires_grad_(False)
