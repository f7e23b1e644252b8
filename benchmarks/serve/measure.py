"""Texts through the server, llama.cpp's server and the engine alone, in turn.

``python -m benchmarks.serve.measure --work DIR [--rounds N]``. Two threads each; a process that is not measured sleeps. Two
models: SmolLM2-135M, and random weights of Llama-3.2-1B's shapes. Each has every matrix, embedding and head included, in
apot4 (4.25 bits) or apot3 (3.25), against llama.cpp's 4-bit types (4.5 bits). DIR keeps the files (6 GB); making them takes
ten minutes and 8 GB of memory. Rows are kept as they come; a killed run goes on where it was.

Wants ``pip install 'potq[serve]' xllamacpp`` and a machine that does nothing else. ``--tiny`` tries everything with few
tokens and SmolLM2 alone, and keeps no row; ``--files`` only makes the files.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.common.goals import Row, print_goals
from benchmarks.common.random_llama import Sizes
from benchmarks.decode.files import SMOLLM2 as SMOLLM2_SOURCE
from benchmarks.decode.files import Ours, gguf_file
from benchmarks.forced import held
from benchmarks.peers.packages import THREADS
from benchmarks.serve.client import Streamed, streamed, total
from benchmarks.serve.contestants import Contestant, Processes
from benchmarks.serve.goals import SERVE, SHAPES_1B, SMOLLM2, TEXTS
from benchmarks.serve.plot import draw

ROUNDS, TOKENS = 5, 64
SIZES_1B = Sizes(width=2048, inner=8192, heads=32, key_heads=8, blocks=16, vocabulary=128256, tied=True)
SCHEMES = ("apot4", "apot3")
TYPES = {SMOLLM2: ("q4_0", "iq4_nl"), SHAPES_1B: ("q4_0",)}  # no goal compares the larger model with llama.cpp
OURS, ENGINE = f"potq {SCHEMES[0]}", "engine"
COUNTS = {SMOLLM2: TEXTS, SHAPES_1B: (1, 16)}
PROTOCOL = {
    "threads": THREADS,
    "files": "every matrix, embedding and head included, in one scheme or type, rounded to nearest",
    "decode": f"so many clients at once, {TOKENS} tokens each, greedy, short prompts that differ; tokens/s of all texts",
    "prefix": "a prompt of 1,000 tokens, then another with the same first 1,000: seconds to the first token",
    "overhead": f"8 texts of {2 * TOKENS} tokens by 8 clients that stream and by the scheduler without a server",
    "gaps": f"7 texts of {3 * TOKENS} tokens stream while another client sends a prompt of 250 tokens every half second",
}
_OPENINGS = (
    "The capital of France",
    "In the year 1901",
    "A river that flows",
    "The first chapter",
    "Two old friends",
    "A good cook",
)


@dataclass(frozen=True)
class Bench:
    """One model's contestants, asked for so many tokens."""

    model: str
    processes: Processes
    tokens: int

    def decode(self, names: list[str], texts: int, number: int) -> Row:
        asked, found = prompts(texts, 1000 * texts + number), dict.fromkeys(names, 0.0)
        shift = number % len(names)
        for name in [*names[shift:], *names[:shift]]:
            with self.processes[name].awake() as address:
                found[name] = round(total(address, asked, self.tokens), 2)
            time.sleep(0.2)  # threads that still spin fall asleep
        return {"tokens_per_s": found}

    def prefix(self, number: int) -> Row:
        shared = f"{number} is a number. " + "one two three four five " * 200  # a token a word
        with self.processes[OURS].awake() as address:
            first, second = (asyncio.run(streamed(address, shared + end, 1)).times[0] for end in ("six", "seven"))
        return {"first": round(first, 4), "second": round(second, 4)}

    def overhead(self, number: int) -> Row:
        async def together(address: str) -> float:
            found = await asyncio.gather(*(streamed(address, prompt, 2 * self.tokens) for prompt in asked))
            return sum(each.tokens for each in found) / max(each.times[-1] for each in found)

        asked = prompts(8, 50_000 + number)
        with self.processes[OURS].awake() as address:
            served = asyncio.run(together(address))
        alone = self.processes[ENGINE].alone(asked, 2 * self.tokens)
        return {"server": round(served, 2), "engine": round(alone, 2)}

    def gaps(self, number: int) -> Row:
        with self.processes[OURS].awake() as address:
            found = asyncio.run(disturbed(address, number, 3 * self.tokens))
        between = [later - earlier for each in found for earlier, later in pairwise(each.times)]
        p99 = statistics.quantiles(between, n=100)[98]
        return {"median": round(statistics.median(between), 5), "p99": round(p99, 5)}


def prompts(count: int, number: int) -> list[str]:
    """So many that differ from each other and from those of other rounds, so that no prefix is shared."""
    return [f"{number}.{index}: {_OPENINGS[index % len(_OPENINGS)]} is known for" for index in range(count)]


async def disturbed(address: str, number: int, tokens: int) -> list[Streamed]:
    """Seven texts, while prompts of others come."""
    readers = [asyncio.ensure_future(streamed(address, prompt, tokens)) for prompt in prompts(7, 70_000 + number)]
    sent = 0
    while not all(reader.done() for reader in readers):
        sent += 1
        prompt = f"{number}.{sent} " + "one two three four five " * 50
        await asyncio.gather(streamed(address, prompt, 1), asyncio.sleep(0.5))
    return [await reader for reader in readers]


def contestants(work: Path, model: str) -> dict[str, Contestant]:
    """Ours and llama.cpp's files of a model, and the engine without a server."""

    def source() -> Path | None:
        return SIZES_1B.file(work / "llama-1b-shapes.gguf") if model == SHAPES_1B else None

    def folder(scheme: str) -> Path:
        return Ours(scheme, scheme, scheme).folder(work, source=source() or SMOLLM2_SOURCE)

    def file(kind: str) -> Path:
        return gguf_file(kind, work, source())

    return {
        **{f"potq {scheme}": Contestant("potq", partial(folder, scheme)) for scheme in SCHEMES},
        **{f"llama.cpp {kind.upper()}": Contestant("llama.cpp", partial(file, kind)) for kind in TYPES[model]},
        ENGINE: Contestant("engine", partial(folder, SCHEMES[0])),
    }


def tasks(bench: Bench, number: int) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """What a round measures: what a row is known by, and what measures the rest of it."""
    names = [f"potq {scheme}" for scheme in SCHEMES] + [f"llama.cpp {kind.upper()}" for kind in TYPES[bench.model]]
    for texts in COUNTS[bench.model]:
        key = {"what": "decode", "model": bench.model, "texts": texts, "round": number}
        yield key, partial(bench.decode, names, texts, number)
    if bench.model == SMOLLM2:
        for measure in (bench.prefix, bench.overhead, bench.gaps):
            yield {"what": measure.__name__, "model": bench.model, "round": number}, partial(measure, number)


def measured(bench: Bench, rounds: int, rows: list[Row], keep: Callable[[], object]) -> None:
    """Add the rows of a model that ``rows`` lacks: a run that was killed has some."""
    for number in range(rounds):
        for key, measure in tasks(bench, number):
            if not any(key.items() <= row.items() for row in rows):
                rows.append(key | measure())
                print(rows[-1], flush=True)
                keep()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tiny", action="store_true", help="try it, and keep no row")
    parser.add_argument("--files", action="store_true", help="only make the files")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = {model: contestants(options.work, model) for model in (COUNTS if not options.tiny else (SMOLLM2,))}
    protocol = {**PROTOCOL, **held()}
    rows: list[Row] = [] if options.tiny else SERVE.load(protocol)
    for model, entered in found.items():
        for contestant in entered.values():
            print(contestant.file(), flush=True)
        if not options.files:
            with Processes(entered) as processes:
                bench = Bench(model, processes, 8 if options.tiny else TOKENS)
                keep = (lambda: None) if options.tiny else (lambda: SERVE.write(protocol, rows))
                measured(bench, 1 if options.tiny else options.rounds, rows, keep)
    if rows and not options.tiny:
        print(draw(rows, SERVE.picture()))
    print_goals(SERVE.judge(rows))


if __name__ == "__main__":
    main()
