"""Tiny random models of any architecture, and inputs for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
import transformers
from torch import Tensor

VOCABULARY, WIDTH, LENGTH, BATCH = 272, 64, 24, 4
IMAGE, MELS, FRAMES, SAMPLES = 28, 16, 64, 4000

_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim", "projection_dim")
_INNER = ("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner", "n_inner")
_EXPERT_INNER = (
    *("moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"),
    *("shared_intermediate_size", "expert_ffn_hidden_size", "intermediate_size_mlp"),
)
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "max_target_positions")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k")
_HEAD_WIDTHS = ("head_dim", "d_kv", "kv_channels", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rotary_dim")
_LATENT = ("q_lora_rank", "kv_lora_rank", "o_lora_rank")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "cls_token_id", "sep_token_id")
_DROPOUTS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop", "mask_time_prob")

SMALL: Mapping[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(_WIDTHS, WIDTH),
    **dict.fromkeys(_INNER, 2 * WIDTH),
    **dict.fromkeys(_EXPERT_INNER, WIDTH),
    **dict.fromkeys(_LAYERS, 2),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(_HEAD_WIDTHS, 16),
    **dict.fromkeys(_LATENT, 32),
    **dict.fromkeys(_POSITIONS, 128),
    **dict.fromkeys(_EXPERTS, 4),
    **dict.fromkeys(_CHOSEN, 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "num_dense_layers"), 1),
    **dict.fromkeys(_TOKENS, 0),
    **dict.fromkeys(_DROPOUTS, 0.0),
    **{"image_size": IMAGE, "patch_size": IMAGE // 4, "num_mel_bins": MELS, "max_source_positions": FRAMES // 2},
    **{"sliding_window": 16, "state_size": 16, "first_k_dense_replace": 1, "num_mtp_layers": 0},
}
"""What the fields of configs are set to, by whatever name a config has for them."""


class Part:
    """A config within a config: its class, and what else is set in it."""

    def __init__(self, kind: str, **changes: Any) -> None:
        self.kind, self.changes = kind, changes


def shrunk(kind: str, changes: Mapping[str, Any]) -> Any:
    """A config of transformers' class ``kind``: every field that :data:`SMALL` knows made small, then ``changes``."""
    found = getattr(transformers, kind)
    known = {field.name for field in fields(found)}
    small = {name: value for name, value in SMALL.items() if name in known}
    parts = {name: shrunk(v.kind, v.changes) if isinstance(v, Part) else v for name, v in changes.items()}
    return found(**(small | parts))


def random_model(kind: str, changes: Mapping[str, Any], *, seed: int = 0) -> Any:
    """A model of transformers' class ``kind`` in float32; the global generator is left alone."""
    found = getattr(transformers, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = found(shrunk(found.config_class.__name__, changes))
    return model.float().eval().requires_grad_(False)


def token_ids(seed: int) -> Tensor:
    """A batch of random tokens, none of them special, int64 ``(batch, length)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (BATCH, LENGTH), generator=generator)


def noise(seed: int, *shape: int) -> Tensor:
    """A batch of random numbers, float32 ``(batch, *shape)``."""
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed))


Inputs = dict[str, Tensor]

INPUTS: Mapping[str, Any] = {
    "tokens": lambda seed: {"input_ids": token_ids(seed)},
    "two texts": lambda seed: {"input_ids": token_ids(seed), "decoder_input_ids": token_ids(seed + 1000)},
    "images": lambda seed: {"pixel_values": noise(seed, 3, IMAGE, IMAGE)},
    "images and tokens": lambda seed: {"input_ids": token_ids(seed), "pixel_values": noise(seed, 3, IMAGE, IMAGE)},
    "spectra": lambda seed: {"input_features": noise(seed, MELS, FRAMES), "decoder_input_ids": token_ids(seed)},
    "sound": lambda seed: {"input_values": noise(seed, SAMPLES)},
}
"""What a model reads, by kind: a batch by its seed."""
