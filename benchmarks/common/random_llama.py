"""Llamas of any size with random weights, as GGUF files in float16.

Random weights cost what others cost, but their activations have no outliers, which ours would take a second product for in
prompts. The tokenizer is SmolLM2's: its first tokens, or all of them and tokens that stand for nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.common.gguf_copy import copy_metadata, write
from potq.checkpoint.source import smollm2_file

_UNUSED = 5  # ggml's type of a token that stands for nothing


@dataclass(frozen=True)
class Sizes:
    """Of a Llama; a ``tied`` one's head is its embedding."""

    width: int
    inner: int
    heads: int
    key_heads: int
    blocks: int
    vocabulary: int
    tied: bool = False

    def file(self, path: Path) -> Path:
        """The model at ``path``; made if it is not there yet."""
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            writer = gguf.GGUFWriter(temporary, "llama")
            reader = gguf.GGUFReader(smollm2_file())
            copy_metadata(reader, writer, self.metadata(reader))
            for name, values in self._tensors():
                writer.add_tensor(name, values)
            write(writer)
            os.replace(temporary, path)
        return path

    def metadata(self, reader: gguf.GGUFReader) -> dict[str, Any]:
        """What differs from SmolLM2's."""
        names = ("tokens", "token_type", "merges")
        tokens, types, merges = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in names)
        unused = range(len(tokens), self.vocabulary)
        tokens = [*tokens[: self.vocabulary], *(f"<|unused_{number}|>" for number in unused)]
        kept = set(tokens)
        return {
            "llama.block_count": self.blocks,
            "llama.embedding_length": self.width,
            "llama.feed_forward_length": self.inner,
            "llama.attention.head_count": self.heads,
            "llama.attention.head_count_kv": self.key_heads,
            "llama.rope.dimension_count": self.width // self.heads,
            "llama.rope.freq_base": 500_000.0,
            "llama.vocab_size": self.vocabulary,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [*types[: self.vocabulary], *[_UNUSED] * len(unused)],
            "tokenizer.ggml.merges": [merge for merge in merges if merge.replace(" ", "") in kept],
        }

    def _tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Matrices in float16, norms in float32."""
        random = np.random.default_rng(0)

        def matrix(rows: int, columns: int) -> np.ndarray:
            return (random.standard_normal((rows, columns), np.float32) * 0.02).astype(np.float16)

        norms = [f"blk.{block}.{name}" for block in range(self.blocks) for name in ("attn_norm", "ffn_norm")]
        yield from ((f"{name}.weight", np.ones(self.width, np.float32)) for name in (*norms, "output_norm"))
        ends = ("token_embd",) if self.tied else ("token_embd", "output")
        yield from ((f"{name}.weight", matrix(self.vocabulary, self.width)) for name in ends)
        for block in range(self.blocks):
            yield from ((f"blk.{block}.{name}.weight", matrix(*shape)) for name, shape in self._block().items())

    def _block(self) -> dict[str, tuple[int, int]]:
        width, inner, keys = self.width, self.inner, self.width // self.heads * self.key_heads
        shapes = {"attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width), "attn_output": (width, width)}
        return shapes | {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
