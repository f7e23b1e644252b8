"""Tiny language models of several families."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {},
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {},
}
FIELDS = {"gpt2": ("vocab_size", "bos_token_id", "eos_token_id")}


def small_model(kind: str, attention: str = "sdpa") -> Any:
    """One of them, with random weights that are always the same."""
    fields = {key: value for key, value in SMALL.items() if key in FIELDS.get(kind, SMALL)} | KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CONFIG_MAPPING[kind](**fields)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
