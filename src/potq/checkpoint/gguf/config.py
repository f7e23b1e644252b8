"""What a GGUF file's metadata says of the computation, as a transformers config.

transformers reads the sizes and drops much of the rest without a word: scaled frequencies, windows, soft caps, biases.
Here every key of the model's family is understood, known to change nothing, or refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from potq.checkpoint.gguf.file import GgufFile
from potq.errors import ModelError

Fields = dict[str, Any]  # of a config
Metadata = Mapping[str, Any]  # of the family: keys without "llama."

LLAMA3 = "rope_freqs.weight"
_SIZES = {  # what transformers' own tables read for every family, under names of each family's
    *("context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "expert_count"),
    *("expert_used_count", "vocab_size"),
}
_SAME = {"rope.scaling.finetuned", "rope.scaling.yarn_ext_factor"}  # llama.cpp's own defaults, which change nothing
_COPIED = {  # key: its name in a config; refused where the config has no such name
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "use_parallel_residual": "use_parallel_residual",
}
_ABSENT = {  # key: the value under which it changes nothing
    "attention.causal": True,
    "pooling_type": 0,
    "attention.max_alibi_bias": 0.0,
    "attention.clamp_kqv": 0.0,
    "expert_shared_count": 0,
    "expert_weights_scale": 0.0,
    "leading_dense_block_count": 0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "nextn_predict_layers": 0,
}
_BIASES = {"attn_q.bias": "attention_bias", "attn_output.bias": "attention_bias", "ffn_up.bias": "mlp_bias"}


def understood(file: GgufFile, fields: Fields) -> Fields:
    """``fields`` of the config that transformers makes of ``file``, with what it leaves out.

    Raises:
        ModelError: names what is not understood.
    """
    prefix = f"{file.architecture}."
    said = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    fields = dict(fields)
    _sizes(fields, said, file)
    _biases(fields, file)
    handled = _SIZES | _SAME | _rope(fields, said, file) | _window(fields, said)
    for key in said.keys() & _COPIED.keys():
        if _COPIED[key] not in fields:
            _refuse(file, key, said[key])
        fields[_COPIED[key]] = said[key]
    for key in sorted(said.keys() - handled - _COPIED.keys()):
        if key not in _ABSENT or said[key] != _ABSENT[key]:
            _refuse(file, key, said[key])
    return fields


def _refuse(file: GgufFile, key: str, value: Any) -> None:
    shown = f"{str(value)[:60]}..." if len(str(value)) > 60 else value
    raise ModelError(
        f"{file.path} says {file.architecture}.{key} = {shown}, which is not supported; "
        "take the model's safetensors folder instead"
    )


def _sizes(fields: Fields, said: Metadata, file: GgufFile) -> None:
    """Sizes that transformers' tables forget for some families."""
    if "num_key_value_heads" in fields and "attention.head_count_kv" not in said:
        fields["num_key_value_heads"] = said["attention.head_count"]
    if fields["model_type"] == "gpt2":
        fields |= {"n_positions": said["context_length"], "n_inner": said["feed_forward_length"]}
    if "query_pre_attn_scalar" in fields:  # llama.cpp knows by the number of layers that the 27B models differ
        largest = said["block_count"] == {"gemma2": 46, "gemma3": 62}.get(file.architecture)
        width = said["embedding_length"] // said["attention.head_count"]
        fields["query_pre_attn_scalar"] = width if largest else said.get("attention.key_length", width)
    fields["vocab_size"] = said.get("vocab_size", fields.get("vocab_size"))


def _biases(fields: Fields, file: GgufFile) -> None:
    for tensor, name in _BIASES.items():
        if name in fields and f"blk.0.{tensor}" in file.shapes:
            fields[name] = True


def _window(fields: Fields, said: Metadata) -> set[str]:
    """The sliding window, and which layers have it."""
    if "sliding_window" not in fields or "use_sliding_window" in fields:  # llama.cpp has none for Qwen
        return set()
    if (width := said.get("attention.sliding_window")) is not None:
        fields["sliding_window"] = width or None
    elif fields["model_type"] == "mistral":
        fields["sliding_window"] = None
    if (pattern := said.get("attention.sliding_window_pattern")) is not None:
        layers = range(int(said["block_count"]))
        slides = pattern if isinstance(pattern, list) else [(layer + 1) % pattern != 0 for layer in layers]
        fields["layer_types"] = ["sliding_attention" if slide else "full_attention" for slide in slides]
    return {"attention.sliding_window", "attention.sliding_window_pattern"}


def _rope(fields: Fields, said: Metadata, file: GgufFile) -> set[str]:
    """Head sizes and rotary embeddings."""
    width = int(said.get("attention.key_length") or said["embedding_length"] // said["attention.head_count"])
    handled = {"attention.key_length", "attention.value_length"}
    if said.get("attention.value_length", width) != width:
        _refuse(file, "attention.value_length", said["attention.value_length"])
    if width != said["embedding_length"] // said["attention.head_count"] or "head_dim" in fields:
        fields["head_dim"] = width
    if not (found := fields.get("rope_parameters")):
        return handled
    nested = "full_attention" in found
    rope = dict(found["full_attention"] if nested else found)
    rope["rope_theta"] = said.get("rope.freq_base", rope.get("rope_theta", 10000.0))
    _partial(rope, fields, said, width, file)
    rope |= _scaling(said, file, rope, width)
    fields["rope_parameters"] = found | {"full_attention": rope} if nested else rope
    handled |= {"rope.freq_base", "rope.dimension_count", "rope.scale_linear", *_SCALING}
    if nested and "rope.freq_base_swa" in said:
        fields["rope_parameters"]["sliding_attention"]["rope_theta"] = said["rope.freq_base_swa"]
        handled.add("rope.freq_base_swa")
    return handled


def _partial(rope: Fields, fields: Fields, said: Metadata, width: int, file: GgufFile) -> None:
    """The part of a head that rotates."""
    rotated = said.get("rope.dimension_count", width)
    if "partial_rotary_factor" in rope:
        rope["partial_rotary_factor"] = rotated / width
        if "partial_rotary_factor" in fields:
            fields["partial_rotary_factor"] = rotated / width
    elif rotated != width:
        _refuse(file, "rope.dimension_count", rotated)


_SCALING = {
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor"),
    *("rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
}


def _scaling(said: Metadata, file: GgufFile, rope: Fields, width: int) -> Fields:
    """How rotary frequencies are scaled."""
    kind, factor = said.get("rope.scaling.type", "none"), said.get("rope.scaling.factor", said.get("rope.scale_linear", 1.0))
    if (factors := file.values(LLAMA3)) is not None and not (factors == 1).all():
        if kind not in ("none", "linear") or factor != 1:
            _refuse(file, "rope.scaling.type", f"{kind}, with {LLAMA3}")
        return _llama3(file, factors, rope["rope_theta"], width)
    if factor == 1 and kind in ("none", "linear", "yarn"):
        return {}
    if kind == "linear" or "rope.scale_linear" in said:
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        _refuse(file, "rope.scaling.type", kind)
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        if said.get(key, 1.0) != 1:
            _refuse(file, key, said[key])
    trained = said.get("rope.scaling.original_context_length") or said["context_length"]  # as llama.cpp has it
    betas = {key: said.get(f"rope.scaling.yarn_{key}") for key in ("beta_fast", "beta_slow")}
    yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": int(trained)}
    return yarn | {key: value for key, value in betas.items() if value is not None}


def _llama3(file: GgufFile, factors: Any, theta: float, width: int) -> Fields:
    """The rule that Llama 3's ``factors`` (what each frequency is divided by, float32 ``(width / 2,)``) were made by.

    The rule has one solution too many; of those that give the same factors, any is right.
    """
    factor = float(factors.max())
    for trained, high in product([2**power for power in range(4, 21)], (4.0, 2.0, 8.0)):
        made = llama3_factors(theta, width, factor, 1.0, high, trained)
        if made.shape == factors.shape and np.allclose(made, factors, rtol=1e-5):
            rule = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high}
            return {"rope_type": "llama3", **rule, "original_max_position_embeddings": trained}
    raise ModelError(f"{file.path}: {LLAMA3} follows no rule that is known; take the model's safetensors folder instead")


def llama3_factors(theta: float, width: int, factor: float, low: float, high: float, trained: int) -> Any:
    """What Llama 3 divides its frequencies by, float32 ``(width / 2,)``."""
    wavelength = 2 * math.pi * theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    kept = ((trained / wavelength - low) / (high - low)).clip(0, 1)  # 1: a short wave, left alone; 0: a long one, divided
    return (1 / ((1 - kept) / factor + kept)).astype(np.float32)
