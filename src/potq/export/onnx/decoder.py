"""A causal LM with its cache as tensors: what the ONNX model computes, and the names of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potq.errors import ExportError

Cache = list[tuple[Tensor, Tensor]]
_PROBE = 12  # tokens that the model is tried with


class Decoder(nn.Module):
    """Logits and the grown cache. The attention mask spans the cache and the new tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Cache
    ) -> tuple[Tensor, Cache]:
        from transformers import DynamicCache

        cache = DynamicCache(past_key_values)  # whole, where a layer's window is sliding: its mask sees to that
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return found.logits, [(layer.keys, layer.values) for layer in found.past_key_values.layers]


@dataclass(frozen=True, eq=False)
class Probe:
    """A few tokens, int64 ``(1, n)``, what a model makes of them, float32 ``(1, n, vocabulary)``, and its cache then."""

    tokens: Tensor
    logits: Tensor
    cache: Cache

    @property
    def input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "position_ids", *self._cache_names("past_key_values")]

    @property
    def output_names(self) -> list[str]:
        return ["logits", *self._cache_names("present")]

    def _cache_names(self, what: str) -> list[str]:
        return [f"{what}.{layer}.{part}" for layer in range(len(self.cache)) for part in ("key", "value")]

    def inputs(self, start: int, stop: int, past: Cache) -> dict[str, Any]:
        """What :class:`Decoder` is called with for tokens ``start..stop`` behind ``past``."""
        return {
            "input_ids": self.tokens[:, start:stop],
            "attention_mask": torch.ones(1, stop, dtype=torch.int64),
            "position_ids": torch.arange(start, stop)[None],
            "past_key_values": past,
        }

    def past(self, length: int) -> Cache:
        """The cache after ``length`` tokens."""
        return [(keys[:, :, :length].contiguous(), values[:, :, :length].contiguous()) for keys, values in self.cache]


@torch.no_grad()
def probe(model: Any) -> Probe:
    """Run ``model``, a causal LM in float32, over a few random tokens.

    Raises:
        ExportError: it keeps no keys and values of all tokens.
    """
    generator = torch.Generator().manual_seed(0)
    text = model.config.get_text_config()  # of a multimodal model, the language model's
    length = min(_PROBE, getattr(text, "max_position_embeddings", _PROBE))
    started = Probe(torch.randint(text.vocab_size, (1, length), generator=generator), torch.empty(0), [])
    refused = f"models of type {model.config.model_type!r} cannot be exported to onnx: "
    try:
        logits, cache = Decoder(model)(**started.inputs(0, length, []))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ExportError(f"{refused}they do not run with a cache of keys and values ({error})") from error
    if not cache or any(part is None or part.ndim != 4 or part.shape[2] != length for layer in cache for part in layer):
        raise ExportError(f"{refused}they keep something else than the keys and values of all tokens")
    return Probe(started.tokens, logits, cache)
