"""Model folders of any size with random weights, written shard by shard."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from benchmarks.common.tokenizer import byte_tokenizer

_SPREAD = 0.02  # of a weight, as models begin with


@dataclass(frozen=True)
class Shapes:
    """Sizes of a Llama whose head is not its embedding."""

    width: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    blocks: int

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0,
            dtype="bfloat16",
            architectures=["LlamaForCausalLM"],
        )

    def shards(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Names and shapes of tensors, file by file: the embedding, the blocks, the head."""
        yield {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for block in range(self.blocks):
            yield {f"model.layers.{block}.{name}.weight": shape for name, shape in self._block().items()}
        yield {"model.norm.weight": (self.width,), "lm_head.weight": (self.vocabulary, self.width)}

    def _block(self) -> Mapping[str, tuple[int, ...]]:
        keys = self.key_heads * (self.width // self.heads)
        return {
            **{"input_layernorm": (self.width,), "post_attention_layernorm": (self.width,)},
            **{"self_attn.q_proj": (self.width, self.width), "self_attn.o_proj": (self.width, self.width)},
            **{"self_attn.k_proj": (keys, self.width), "self_attn.v_proj": (keys, self.width)},
            **{"mlp.gate_proj": (self.inner, self.width), "mlp.up_proj": (self.inner, self.width)},
            "mlp.down_proj": (self.width, self.inner),
        }


LLAMA3_8B = Shapes(width=4096, inner=14336, heads=32, key_heads=8, vocabulary=128256, blocks=32)
TINY = Shapes(width=128, inner=448, heads=4, key_heads=2, vocabulary=1024, blocks=4)


def write(shapes: Shapes, work: Path) -> Path:
    """The folder of a model, bfloat16; what a killed run wrote of it is kept. Memory holds one file."""
    folder = work / "-".join(str(value) for value in asdict(shapes).values())
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    total = 0
    shards = list(shapes.shards())
    for number, listed in enumerate(shards, 1):
        file = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        if not file.exists():
            partial = file.with_suffix(".partial")
            save_file(_tensors(listed, number), partial, metadata={"format": "pt"})
            os.replace(partial, file)
        places |= dict.fromkeys(listed, file.name)
        total += file.stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    byte_tokenizer("the cat sat on the mat", 260).save_pretrained(folder)
    shapes.config().save_pretrained(folder)  # the folder with a config.json is whole
    return folder


def _tensors(listed: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Norms of ones, matrices of random normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, _SPREAD, generator=generator)
        for name, shape in listed.items()
    }
