"""Texts through the server, llama.cpp's server and the engine alone, in turn.

``python -m benchmarks.serve.measure --work DIR [--rounds N] [--shapes FOLDER]``. Two threads each; a process that is not
measured sleeps. SmolLM2-135M as apot4 throughout against llama.cpp's Q4_0, both made in DIR. ``--shapes FOLDER`` is a packed
model of Llama-3.2-1B's shapes, of which only the gain by many texts is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from benchmarks.common.goals import Row, print_goals
from benchmarks.decode.files import gguf_file
from benchmarks.peers.packages import THREADS
from benchmarks.serve.client import times, total
from benchmarks.serve.goals import SERVE, SHAPES_1B, SMOLLM2, TEXTS

ROUNDS, TOKENS = 3, 48
PROTOCOL = {
    "threads": THREADS,
    "files": "SmolLM2-135M, every matrix apot4 (4.25 bits); llama.cpp: every matrix Q4_0 (4.5 bits)",
    "decode": f"so many clients at once, {TOKENS} tokens each, greedy, short prompts that differ; tokens/s of all",
    "prefix": "a prompt of 1,000 tokens, then another with the same first 1,000: seconds to the first token",
    "overhead": f"8 texts of {TOKENS} tokens by 8 clients that stream, and by the scheduler in a process without a server",
    "gaps": "7 texts stream while another client sends a new prompt of 250 tokens every half second",
}
_OPENINGS = (
    "The capital of France",
    "In the year 1901",
    "A river that flows",
    "The first chapter",
    "Two old friends",
    "A good cook",
)


class Contestant:
    """A process of ``contestant.py``."""

    def __init__(self, kind: str, model: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.serve.contestant", kind, str(model)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self._line()
        self._process.send_signal(signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[str]:
        """Its address, while it runs."""
        self._process.send_signal(signal.SIGCONT)
        yield self.address
        self._process.send_signal(signal.SIGSTOP)

    def warm(self) -> None:
        """Let it touch its weights: the first text of a process waits for memory."""
        if self.address == "ready":
            self.ask(["It was"])
            return
        with self.awake() as address:
            total(address, ["It was"], TOKENS)

    def ask(self, prompts: list[str]) -> float:
        """Tokens per second of the engine alone."""
        assert self._process.stdin is not None
        with self.awake():
            print(json.dumps({"prompts": prompts, "tokens": TOKENS}), file=self._process.stdin, flush=True)
            found = json.loads(self._line())
        return float(found["tokens"] / found["seconds"])

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended")
        return line.strip()


def prompts(count: int, round_: int) -> list[str]:
    """So many that differ from each other and from those of other rounds, so that no prefix is shared."""
    return [f"{round_}.{index}: {_OPENINGS[index % len(_OPENINGS)]} is known for" for index in range(count)]


def decode(model: str, contestants: dict[str, Contestant], rounds: int, texts: tuple[int, ...]) -> Iterator[Row]:
    for count in texts:
        for round_ in range(rounds):
            row: Row = {"what": "decode", "model": model, "texts": count, "round": round_}
            for name, contestant in contestants.items():
                with contestant.awake() as address:
                    row[name] = round(total(address, prompts(count, 1000 * count + round_), TOKENS), 2)
            yield row


def prefix(server: Contestant, rounds: int) -> Iterator[Row]:
    for round_ in range(rounds):
        shared = f"{round_} is a number. " + "one two three four five " * 200  # a token a word
        with server.awake() as address:
            first, second = (asyncio.run(times(address, shared + end, 1))[0] for end in ("six", "seven"))
        yield {"what": "prefix", "model": SMOLLM2, "round": round_, "first": round(first, 4), "second": round(second, 4)}


def overhead(server: Contestant, engine: Contestant, rounds: int) -> Iterator[Row]:
    async def streamed(address: str, asked: list[str]) -> float:
        found = await asyncio.gather(*(times(address, prompt, TOKENS) for prompt in asked))
        return sum(map(len, found)) / max(each[-1] for each in found)

    for round_ in range(rounds):
        asked = prompts(8, 50_000 + round_)
        with server.awake() as address:
            served = asyncio.run(streamed(address, asked))
        alone = engine.ask(asked)
        yield {"what": "overhead", "model": SMOLLM2, "round": round_, "server": round(served, 2), "engine": round(alone, 2)}


def gaps(server: Contestant, rounds: int) -> Iterator[Row]:
    async def disturbed(address: str, round_: int) -> list[float]:
        readers = [asyncio.ensure_future(times(address, prompt, 4 * TOKENS)) for prompt in prompts(7, 70_000 + round_)]
        number = 0
        while not all(reader.done() for reader in readers):
            number += 1
            await asyncio.gather(
                times(address, f"{round_}.{number} " + "one two three four five " * 50, 1), asyncio.sleep(0.5)
            )
        found = [await reader for reader in readers]
        return [later - earlier for each in found for earlier, later in pairwise(each)]

    for round_ in range(rounds):
        with server.awake() as address:
            between = asyncio.run(disturbed(address, round_))
        p99 = statistics.quantiles(between, n=100)[98]
        yield {
            "what": "gaps",
            "model": SMOLLM2,
            "round": round_,
            "median": round(statistics.median(between), 5),
            "p99": round(p99, 5),
        }


def measure(work: Path, rounds: int, shapes: Path | None) -> Iterator[Row]:
    ours, theirs = work / "smollm2-apot4", gguf_file("q4_0", work)
    if not ours.exists():
        words = ["quantize", "smollm2", str(ours), "--scheme", "apot4", "--embedding", "apot4"]
        subprocess.run([sys.executable, "-m", "potq", *words], check=True, capture_output=True)
    with ExitStack() as stack:

        def start(kind: str, model: Path) -> Contestant:
            contestant = Contestant(kind, model)
            stack.callback(contestant.end)
            contestant.warm()
            return contestant

        server, engine = start("potq", ours), start("engine", ours)
        yield from decode(SMOLLM2, {"potq": server, "llama.cpp": start("llama.cpp", theirs)}, rounds, TEXTS)
        yield from prefix(server, rounds)
        yield from overhead(server, engine, rounds)
        yield from gaps(server, rounds)
        if shapes is not None:
            yield from decode(SHAPES_1B, {"potq": start("potq", shapes)}, rounds, (1, 16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--shapes", type=Path, help="a packed folder of Llama-3.2-1B's shapes")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in measure(options.work, options.rounds, options.shapes):
        print(row, flush=True)
        rows.append(row)
    print_goals(SERVE.write(PROTOCOL | {"rounds": options.rounds}, rows))


if __name__ == "__main__":
    main()
