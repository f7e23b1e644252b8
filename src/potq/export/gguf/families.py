"""Model families as llama.cpp knows them: hyperparameters, tensor names, the order of rows.

In the family ``llama``, llama.cpp rotates neighbouring pairs of a head's outputs, transformers its first half with the
second. The rows of query and key projections are therefore interleaved there, as llama.cpp's own converter does. Qwen2 and
Qwen3 are families of their own there, which rotate as transformers does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potq.checkpoint.gguf.config import LLAMA3, llama3_factors
from potq.errors import ExportError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_WRITTEN_ROPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Family:
    """A family of llama.cpp's.

    Attributes:
        architecture: its name there.
        check: raises ExportError for a config that llama.cpp would compute otherwise.
        metadata: writes the hyperparameters.
        rows: how many heads' rows a tensor (by transformers' name) is to be interleaved by, or None.
        extra: tensors that transformers computes from the config, by their names in the file.
    """

    architecture: str
    check: Callable[[Any], None]
    metadata: Callable[[GGUFWriter, Any], None]
    rows: Callable[[str, Any], int | None]
    extra: Callable[[Any], dict[str, Tensor]]


def family(config: Any) -> Family:
    """The family of a model's config.

    Raises:
        ExportError: none that can be exported, or settings that llama.cpp does not have.
    """
    found = _FAMILIES.get(config.model_type)
    if found is None:
        raise ExportError(
            f"models of type {config.model_type!r} cannot be exported to gguf yet, only {', '.join(_FAMILIES)}"
        )
    found.check(config)
    return found


def interleaved(rows: int, heads: int) -> Tensor:
    """Where each row of the file comes from, for rotary halves as neighbouring pairs: int64 ``(rows,)``."""
    return torch.arange(rows).view(heads, 2, rows // heads // 2).transpose(1, 2).flatten()


def _require(config: Any, wanted: dict[str, tuple[Any, ...]]) -> None:
    for key, accepted in wanted.items():
        if (found := getattr(config, key)) not in accepted:
            names = " or ".join(map(repr, accepted))
            raise ExportError(
                f"llama.cpp computes {config.model_type} models with {key} {names} only, this one has {found!r}"
            )


def _check_llama(config: Any) -> None:
    _require(config, {"hidden_act": ("silu", "swish")})
    if (rope := config.rope_parameters["rope_type"]) not in _WRITTEN_ROPES:
        raise ExportError(f"rope scaling of type {rope!r} cannot be exported to gguf yet, only {', '.join(_WRITTEN_ROPES)}")


def _check_qwen3(config: Any) -> None:
    _check_llama(config)
    _require(config, {"attention_bias": (False,)})


def _check_gpt2(config: Any) -> None:
    wanted = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,)}
    _require(config, wanted | {"scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)})


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _llama_metadata(writer: GGUFWriter, config: Any) -> None:
    # llama.cpp has no window for these families; within one window the model is the same
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(min(config.max_position_embeddings, window))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _llama_rows(name: str, config: Any) -> int | None:
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else None


def _as_they_stand(name: str, config: Any) -> None:
    return None


def _llama_extra(config: Any) -> dict[str, Tensor]:
    """Llama 3's scaled frequencies: what llama.cpp divides each by, float32 ``(head_dim / 2,)``."""
    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return {}
    factors = llama3_factors(
        rope["rope_theta"],
        _head_dim(config),
        rope["factor"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )
    return {LLAMA3: torch.from_numpy(factors)}


def _gpt2_metadata(writer: GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


_LLAMA = Family("llama", _check_llama, _llama_metadata, _llama_rows, _llama_extra)
_FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family("qwen2", _check_llama, _llama_metadata, _as_they_stand, _llama_extra),
    "qwen3": Family("qwen3", _check_qwen3, _llama_metadata, _as_they_stand, _llama_extra),
    "gpt2": Family("gpt2", _check_gpt2, _gpt2_metadata, _as_they_stand, lambda config: {}),
}
