"""Tokens per second of two blocks of an 8B Llama, random weights: ``python -m benchmarks.decode.blocks_8b --work DIR``.

An 8B model's matrices do not fit into a cache, and a token's time is that of reading them: what SmolLM2 does not show. The
sizes are Llama-3-8B's, with two of its 32 blocks. The vocabulary is SmolLM2's first 1,024 tokens, so that the head is 1 % of
what a token reads; it has the scheme, or type, of the other matrices on either side. Random weights cost what others cost,
but their activations have no outliers, which ours would take a second product for in prompts.

Rounds, threads and contestants are those of ``decode/speed.py``. DIR keeps the models (3 GB); making them takes minutes and
6 GB of memory. Wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.common.gguf_copy import copy_metadata, write
from benchmarks.common.goals import Row, print_goals
from benchmarks.decode.contestants import Entry
from benchmarks.decode.files import FOUR_BITS, Ours, gguf_file
from benchmarks.decode.goals import BLOCKS_8B
from benchmarks.decode.speed import BUILDS, FORK, llama_entries, memory_read, speed_round, workers
from benchmarks.forced import held
from potq.checkpoint.source import smollm2_file

SCHEMES = ("apot4", "pot4", "mxfp4", "pot3", "pot3s", "pot2")
WIDTH, INNER, HEADS, KV_HEADS, BLOCKS, VOCABULARY = 4096, 14336, 32, 8, 2, 1024
NEW_TOKENS, PROMPT_TOKENS, ROUNDS = 32, 128, 7
PROTOCOL = {
    "threads": 2,
    "model": f"Llama-3-8B's sizes, {BLOCKS} blocks, random normal weights, one text",
    "head": f"{VOCABULARY} tokens, 1 % of the bytes of a token; in the scheme or type of the other matrices on either side",
    "decode": f"{NEW_TOKENS} tokens, greedy, after a prompt of one",
    "prefill": f"{PROMPT_TOKENS} tokens to the last one's logits",
    "effort": "of our files: fast",
}


def source(work: Path) -> Path:
    """The model in float16, as a GGUF file."""
    path = work / "blocks-8b.gguf"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        writer = gguf.GGUFWriter(temporary, "llama")
        reader = gguf.GGUFReader(smollm2_file())
        copy_metadata(reader, writer, metadata(reader))
        for name, values in tensors():
            writer.add_tensor(name, values)
        write(writer)
        os.replace(temporary, path)
    return path


def metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    """What differs from SmolLM2's: sizes, and a tokenizer of its first tokens."""
    names = ("tokens", "token_type", "merges")
    tokens, types, merges = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in names)
    kept = set(tokens[:VOCABULARY])
    return {
        "llama.block_count": BLOCKS,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.rope.freq_base": 500_000.0,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.tokens": tokens[:VOCABULARY],
        "tokenizer.ggml.token_type": types[:VOCABULARY],
        "tokenizer.ggml.merges": [merge for merge in merges if merge.replace(" ", "") in kept],
    }


def tensors() -> Iterator[tuple[str, np.ndarray]]:
    """Matrices in float16, norms in float32."""
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns), np.float32) * 0.02).astype(np.float16)

    keys = WIDTH // HEADS * KV_HEADS
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (keys, WIDTH), "attn_v": (keys, WIDTH), "attn_output": (WIDTH, WIDTH)}
    shapes |= {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
    norms = [f"blk.{block}.{name}" for block in range(BLOCKS) for name in ("attn_norm", "ffn_norm")]
    yield from ((f"{name}.weight", np.ones(WIDTH, np.float32)) for name in (*norms, "output_norm"))
    yield from ((f"{name}.weight", matrix(VOCABULARY, WIDTH)) for name in ("token_embd", "output"))
    for block in range(BLOCKS):
        yield from ((f"blk.{block}.{name}.weight", matrix(*shape)) for name, shape in shapes.items())


def entries(work: Path) -> list[Entry]:
    """Every contestant, its files made."""
    model = source(work)
    ours = [Entry(f"potq {each}", "engine", str(Ours(each, each, each).folder(work, source=model))) for each in SCHEMES]
    files = {kind: str(gguf_file(kind, work, model)) for kind in FOUR_BITS}
    return [*ours, *llama_entries(files, (*BUILDS, FORK))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    protocol = {**PROTOCOL, **held()}
    rows: list[Row] = BLOCKS_8B.load(protocol)
    left = sorted(set(range(options.rounds)) - {row["round"] for row in rows})
    listed = entries(options.work) if left else []
    if left:
        with workers(listed) as started, workers([memory_read(started)]) as roof:
            for number in left:
                rows += speed_round(number, [*started, *roof], new_tokens=NEW_TOKENS, prompt_tokens=PROMPT_TOKENS)
                BLOCKS_8B.write(protocol, rows)
                print(f"round {number + 1} of {options.rounds}", flush=True)
    print_goals(BLOCKS_8B.write(protocol, rows))


if __name__ == "__main__":
    main()
