"""Transformers' models as parts of an integer model, family by family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from potq.errors import DataError, ModelError
from potq.hardware.fixed_point import fixed
from potq.hardware.layers import (
    IntegerAttention,
    IntegerBlock,
    IntegerMlp,
    IntegerNorm,
    attention_factor,
    weight_shift,
)
from potq.hardware.matrix import IntegerLinear, IntegerMatrix
from potq.hardware.tables import gate_table, rotation_table
from potq.nn.packed import PackedModule
from potq.nn.refusals import require_no_adapter, require_weights

_WIDEST_HEAD = 256  # products of 15 and 8 bits that 32 bits hold


def read(model: Any, context: int | None) -> dict[str, Any]:
    """The fields of an :class:`~potq.hardware.model.IntegerModel`.

    Raises:
        ModelError: another family, settings that are not built, or a matrix that is not packed.
        DataError: a context beyond the model's.
    """
    require_no_adapter(model)
    require_weights(model)
    kind = model.config.model_type
    if kind not in _FAMILIES:
        raise ModelError(f"models of type {kind!r} have no integer form yet, only {', '.join(_FAMILIES)}")
    limit = _limit(model.config)
    context = limit if context is None else context
    if not 1 <= context <= limit:
        raise DataError(f"invalid context {context}; the model has 1 to {limit} positions")
    return _FAMILIES[kind](model, context)


def _limit(config: Any) -> int:
    """Positions, and no more than a sliding window holds: within one, the model has none."""
    positions = int(config.max_position_embeddings)
    return min(positions, getattr(config, "sliding_window", None) or positions)


def _llama(model: Any, context: int) -> dict[str, Any]:
    config, body = model.config, model.model
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    _check_heads(config, config.num_attention_heads, head_dim)
    with torch.no_grad():
        cosine, sine = body.rotary_emb(torch.zeros(1, dtype=torch.float32), torch.arange(context)[None])
    half = head_dim // 2
    if cosine.shape[-1] != head_dim:
        raise ModelError(
            f"the model rotates {cosine.shape[-1]} of {head_dim} numbers of a head; the integer form rotates all"
        )
    embedding = _matrix("model.embed_tokens", body.embed_tokens)
    return {
        "embedding": embedding,
        "positions": None,
        "blocks": tuple(_llama_block(layer, index, config, head_dim, context) for index, layer in enumerate(body.layers)),
        "norm": _rms_norm("model.norm", body.norm),
        "head": _head(model, embedding),
        "rotation": rotation_table(cosine[0, :, :half].numpy(), sine[0, :, :half].numpy()),
        "context": context,
    }


def _llama_block(layer: Any, index: int, config: Any, head_dim: int, context: int) -> IntegerBlock:
    name = f"model.layers.{index}"
    attention, mlp = layer.self_attn, layer.mlp
    parts = {part: _linear(f"{name}.self_attn.{part}_proj", getattr(attention, f"{part}_proj")) for part in "qkvo"}
    return IntegerBlock(
        _rms_norm(f"{name}.input_layernorm", layer.input_layernorm),
        IntegerAttention(
            parts["q"], parts["k"], parts["v"], parts["o"], config.num_attention_heads, config.num_key_value_heads,
            head_dim, attention_factor(float(attention.scaling)), weight_shift(context),
        ),
        _rms_norm(f"{name}.post_attention_layernorm", layer.post_attention_layernorm),
        IntegerMlp(
            _linear(f"{name}.mlp.gate_proj", mlp.gate_proj),
            _linear(f"{name}.mlp.up_proj", mlp.up_proj),
            _linear(f"{name}.mlp.down_proj", mlp.down_proj),
            gate_table(config.hidden_act),
        ),
    )  # fmt: skip


def _gpt2(model: Any, context: int) -> dict[str, Any]:
    config, body = model.config, model.transformer
    if config.add_cross_attention or not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise ModelError("a GPT-2 with cross-attention, or whose scores are scaled otherwise, has no integer form")
    _check_heads(config, config.n_head, config.n_embd // config.n_head)
    embedding = _matrix("transformer.wte", body.wte)
    return {
        "embedding": embedding,
        "positions": _matrix("transformer.wpe", body.wpe),
        "blocks": tuple(_gpt2_block(layer, index, config, context) for index, layer in enumerate(body.h)),
        "norm": _layer_norm("transformer.ln_f", body.ln_f),
        "head": _head(model, embedding),
        "rotation": None,
        "context": context,
    }


def _gpt2_block(layer: Any, index: int, config: Any, context: int) -> IntegerBlock:
    name = f"transformer.h.{index}"
    joint = _linear(f"{name}.attn.c_attn", layer.attn.c_attn)
    head_dim = config.n_embd // config.n_head
    query, key, value = (_rows(joint, number * config.n_embd, config.n_embd, part) for number, part in enumerate("qkv"))
    return IntegerBlock(
        _layer_norm(f"{name}.ln_1", layer.ln_1),
        IntegerAttention(
            query, key, value, _linear(f"{name}.attn.c_proj", layer.attn.c_proj), config.n_head, config.n_head, head_dim,
            attention_factor(head_dim**-0.5), weight_shift(context),
        ),
        _layer_norm(f"{name}.ln_2", layer.ln_2),
        IntegerMlp(
            None,
            _linear(f"{name}.mlp.c_fc", layer.mlp.c_fc),
            _linear(f"{name}.mlp.c_proj", layer.mlp.c_proj),
            gate_table(config.activation_function),
        ),
    )  # fmt: skip


def _check_heads(config: Any, heads: int, head_dim: int) -> None:
    kv_heads = getattr(config, "num_key_value_heads", heads)
    if head_dim > _WIDEST_HEAD or heads % kv_heads:
        raise ModelError(
            f"{heads} heads of {head_dim} over {kv_heads} of keys; the integer form takes heads of up to {_WIDEST_HEAD}, "
            "and as many to each of keys"
        )


def _head(model: Any, embedding: IntegerMatrix) -> IntegerLinear:
    head = model.lm_head
    if isinstance(head, PackedModule) and head.tied_to is model.get_input_embeddings():
        return IntegerLinear(embedding)
    return _linear("lm_head", head)


def _rows(linear: IntegerLinear, start: int, count: int, part: str) -> IntegerLinear:
    matrix = linear.matrix.part(start, start + count, f"{linear.matrix.name}.{part}")
    return IntegerLinear(matrix, None if linear.bias is None else linear.bias[start : start + count])


def _matrix(name: str, module: nn.Module) -> IntegerMatrix:
    if not isinstance(module, PackedModule):
        raise ModelError(
            f"{name} is not packed, and the integer form has packed matrices alone; quantize it too: --embedding int8 for "
            "embeddings and the head, and no --ignore"
        )
    return IntegerMatrix.from_weight(name, module.quantized)


def _linear(name: str, module: nn.Module) -> IntegerLinear:
    bias = getattr(module, "bias", None)
    return IntegerLinear(_matrix(name, module), None if bias is None else fixed(_floats(bias)))


def _rms_norm(name: str, module: Any) -> IntegerNorm:
    return IntegerNorm.from_floats(name, _floats(module.weight), None, module.variance_epsilon, centered=False)


def _layer_norm(name: str, module: Any) -> IntegerNorm:
    return IntegerNorm.from_floats(name, _floats(module.weight), _floats(module.bias), module.eps, centered=True)


def _floats(values: torch.Tensor) -> Any:
    return values.detach().double().numpy()


_FAMILIES: dict[str, Callable[[Any, int], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "gpt2": _gpt2,
}
