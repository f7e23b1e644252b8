"""Tokens per second of two blocks of an 8B Llama, random weights: ``python -m benchmarks.decode.blocks_8b --work DIR``.

An 8B model's matrices do not fit into a cache, and a token's time is that of reading them: what SmolLM2 does not show. The
sizes are Llama-3-8B's, with two of its 32 blocks. The vocabulary is SmolLM2's first 1,024 tokens, so that the head is 1 % of
what a token reads; it has the scheme, or type, of the other matrices on either side.

Rounds, threads and contestants are those of ``decode/speed.py``. DIR keeps the models (3 GB); making them takes minutes and
6 GB of memory. Wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common.goals import Row, print_goals
from benchmarks.common.random_llama import Sizes
from benchmarks.decode.contestants import Entry
from benchmarks.decode.files import FOUR_BITS, Ours, gguf_file
from benchmarks.decode.goals import BLOCKS_8B
from benchmarks.decode.speed import BUILDS, FORK, llama_entries, memory_read, speed_round, workers
from benchmarks.forced import held

SCHEMES = ("apot4", "pot4", "mxfp4", "pot3", "pot3s", "pot2")
SIZES = Sizes(width=4096, inner=14336, heads=32, key_heads=8, blocks=2, vocabulary=1024)
NEW_TOKENS, PROMPT_TOKENS, ROUNDS = 32, 128, 7
PROTOCOL = {
    "threads": 2,
    "model": f"Llama-3-8B's sizes, {SIZES.blocks} blocks, random normal weights, one text",
    "head": "1024 tokens, 1 % of the bytes of a token; in the scheme or type of the other matrices on either side",
    "decode": f"{NEW_TOKENS} tokens, greedy, after a prompt of one",
    "prefill": f"{PROMPT_TOKENS} tokens to the last one's logits",
    "effort": "of our files: fast",
}


def entries(work: Path) -> list[Entry]:
    """Every contestant, its files made."""
    model = SIZES.file(work / "blocks-8b.gguf")
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
