"""Tiny models with experts, of every way that transformers stores them."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import transformers

VOCABULARY = 48
_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MANY = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
_DEEPSEEK = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1},
    **{"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
}
_LINEAR = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2Moe", {**_MANY, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("Qwen3Moe", _MANY),
    "qwen3_next": ("Qwen3Next", {**_MANY, **_LINEAR, "shared_expert_intermediate_size": 24}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "deepseek_v3": ("DeepseekV3", _DEEPSEEK),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 4}),
    "phimoe": ("Phimoe", {"num_local_experts": 4}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "minimax": ("MiniMax", {"num_local_experts": 4, "head_dim": 8, "block_size": 8}),
    "jamba": ("Jamba", {"num_experts": 4, **_MAMBA, "use_mamba_kernels": False}),
    "llama4": ("Llama4", {"num_local_experts": 4, "intermediate_size_mlp": 48, "head_dim": 8}),
    "dbrx": (
        "Dbrx",
        {
            **{"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "jetmoe": ("JetMoe", {"num_local_experts": 4, "kv_channels": 8}),
    "nemotron_h": (
        "NemotronH",
        {
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
            **{"layers_block_type": ["attention", "moe"], "moe_shared_expert_intermediate_size": 24},
            **{"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8},
        },
    ),
}
"""The stem of the classes' names, and settings. There are plain and transposed stacks, biases, products in a batch, experts
without a gate, experts in attention, and parameters of two dimensions.
"""

FAMILIES = {name: entry for name, entry in FAMILIES.items() if hasattr(transformers, f"{entry[0]}Config")}  # 5.0 lacks some
_QUICK = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoe", "olmoe", "llama4", "jamba")
DEEP = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="make check-deep")
CASES = [family if family in _QUICK else pytest.param(family, marks=DEEP) for family in FAMILIES]
"""For tests that take their time with each family."""


def moe(family: str, **changes: Any) -> Any:
    """A random model; the same one every time."""
    stem, settings = FAMILIES[family]
    config_class = transformers.Llama4TextConfig if stem == "Llama4" else getattr(transformers, f"{stem}Config")
    settings = {**_BASE, **settings, **changes}
    settings = {key: value for key, value in settings.items() if key not in _ABSENT.get(stem, ())}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{stem}ForCausalLM")(config_class(**settings)).eval()


_ABSENT = {
    "JetMoe": ("num_attention_heads",),
    "NemotronH": ("num_hidden_layers",),
    "Dbrx": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
}


def tokens(batch: int = 2, length: int = 24) -> torch.Tensor:
    """Token ids ``(batch, length)``."""
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))
