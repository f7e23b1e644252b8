"""Tokens per second of SmolLM2-135M: potq's engine, Hugging Face and llama.cpp, in one interleaved run.

``python -m benchmarks.decode.speed --work DIR [--data DIR] [--rounds N]``. Two threads each, one sequence; prompts of one
and of 512 tokens. DIR keeps the models that are made first (half an hour, most of it calibration). Every round measures
every contestant once, in turn, each in a process of its own that sleeps meanwhile; medians of rounds count, and ratios are
medians of each round's ratio. Rows are kept as they come; a killed run resumes. Wants a machine that does nothing else.

Perplexity, which no machine changes, has a results file of its own: of the very files, weights dequantized and activations
not rounded, on the first 40 windows of 1024 of WikiText-2 test; and of our files made once more, calibrated (effort
``balanced``), which changes their numbers and not their speed.

Contestants whose package is missing are named: ``pip install xllamacpp llama-cpp-python ik-llama-cpp-python``; the second is
built for this machine's own instruction set and usually faster than the first, the third is a fork of llama.cpp for AVX2.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.decode.contestants import Entry
from benchmarks.decode.files import FOUR_BITS, GGML_TYPES, OURS, gguf_file, types_used, unpacked_folder
from benchmarks.decode.goals import FILES, SPEED
from benchmarks.decode.plot import draw
from benchmarks.forced import held
from benchmarks.ptq.settings import Setting, settings
from potq import kernels
from potq.evaluate.perplexity import perplexity

NEW_TOKENS, PROMPT_TOKENS, ROUNDS = 128, 512, 7
BUILDS, FORK = ("llama.cpp", "llama.cpp native"), "ik_llama.cpp"
STARTS = 9  # of the program, for the time to the first token
PROTOCOL = {
    "threads": 2,
    "decode": f"{NEW_TOKENS} tokens, greedy, after a prompt of one",
    "prefill": f"{PROMPT_TOKENS} tokens to the last one's logits",
    "first_token": "potq-run as a process: start, load, one-token prompt, one new token, end; files in the page cache",
    "effort": "of our files: fast",
    "potq float32": "the unpacked model on the engine",
    "ik_llama.cpp": "llama.cpp's 4-bit files, attention as its package chooses it",
}
FILES_PROTOCOL = {
    "perplexity": "WikiText-2 test, first 40 windows of 1024 tokens, weights as stored, activations not rounded",
    "calibrated": "our files by effort balanced, 64 windows of 512 tokens of WikiText-2 train; others are rounded, as timed",
}


class Worker:
    """A contestant's process."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.decode.worker", entry.kind, entry.argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))},
            text=True,
        )
        self.facts: dict[str, Any] = self._answer()

    def ask(self, method: str, *arguments: object) -> Any:
        assert self._process.stdin is not None
        print(json.dumps([method, *arguments]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.entry.name} ended; run python -m benchmarks.decode.worker {self.entry.kind} {self.entry.argument}"
            )
        return json.loads(line)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def entries(work: Path, calibration: list[torch.Tensor] | None = None) -> list[Entry]:
    """Every contestant, its files made; ours with or without ``calibration``."""
    ours = [Entry(f"potq {each.name}", "engine", str(each.folder(work, calibration))) for each in OURS]
    files = {kind: str(gguf_file(kind, work)) for kind in GGML_TYPES}
    theirs = llama_entries(files, BUILDS) + llama_entries({kind: files[kind] for kind in FOUR_BITS}, [FORK])
    modules = [Entry(f"Hugging Face {kind}", "huggingface", kind) for kind in ("float32", "bfloat16", "int8")]
    unpacked = Entry("potq float32", "engine, unpacked", str(unpacked_folder(work)))
    return [*ours, unpacked, *theirs, *modules]


def llama_entries(files: Mapping[str, str], builds: Iterable[str]) -> list[Entry]:
    """Each file, by the name of its type, in each build of llama.cpp."""
    return [Entry(f"{build} {kind.upper()}", build, path) for build in builds for kind, path in files.items()]


@contextmanager
def workers(listed: list[Entry]) -> Iterator[list[Worker]]:
    """The entries that can be measured here, started; the others are named."""
    started: list[Worker] = []
    try:
        for entry in listed:
            worker = Worker(entry)
            if "unavailable" in worker.facts:
                print(f"not measured: {entry.name}: {worker.facts['unavailable']}")
                worker.close()
            else:
                started.append(worker)
        yield started
    finally:
        for worker in started:
            worker.close()


def memory_read(started: list[Worker]) -> Entry:
    """The roof: reading as many bytes as our 4-bit model has."""
    size = max(worker.facts["weight_bytes"] for worker in started if worker.entry.name == "potq pot4")
    return Entry("memory read", "bandwidth", str(size))


def speed_round(
    number: int, started: list[Worker], *, new_tokens: int = NEW_TOKENS, prompt_tokens: int = PROMPT_TOKENS
) -> Iterator[Row]:
    """One measurement of each; who comes first changes from round to round."""
    prompt = list(range(100, 100 + prompt_tokens))
    shift = number % len(started)
    for worker in [*started[shift:], *started[:shift]]:
        row: Row = {"what": "speed", "name": worker.entry.name, "round": number, **worker.facts}
        worker.ask("decode", 1, 8)  # wakes threads, and brings its own weights where they would be
        row["decode"] = new_tokens / worker.ask("decode", 1, new_tokens)
        if worker.entry.kind != "bandwidth":  # which has no prompt
            row["prefill"] = prompt_tokens / worker.ask("prefill", prompt)
        yield row
        time.sleep(0.2)  # threads that still spin fall asleep


def first_token(entry: Entry) -> Row:
    """One start of the program, by the clock, and its memory."""
    program = Path(sys.executable).with_name("potq-run")
    command = [str(program), entry.argument, "1", "--ids", "-n", "1", "--threads", "2", "--stats"]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    peak = float(done.stderr.split("peak memory ")[1].split()[0]) * 1e6
    size = sum(file.stat().st_size for file in Path(entry.argument).glob("*.safetensors"))
    return {"what": "first token", "name": entry.name, "seconds": seconds, "peak_bytes": peak, "model_bytes": size}


def quality(entry: Entry, setting: Setting, calibrated: bool) -> Row:
    model = potq.load(entry.argument, dtype="float32")
    if entry.kind == "engine":
        kernels.set_activations(model, "float")
    found = perplexity(model, setting.tokens(), window=setting.window)
    path = Path(entry.argument)
    files = list(path.glob("*.safetensors")) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    types = {} if path.is_dir() else {"types": types_used(path)}
    named = {"name": entry.name, "calibrated": calibrated}
    return {**named, "perplexity": found.perplexity, "file_bytes": size, **types}


def time_all(listed: list[Entry], rows: list[Row], rounds: int, keep: Callable[..., None]) -> None:
    """The rounds and the starts that are not among ``rows`` yet."""
    left = set(range(rounds)) - {row["round"] for row in rows if row["what"] == "speed"}
    if left:
        with workers(listed) as started, workers([memory_read(started)]) as roof:
            for number in sorted(left):
                keep(*speed_round(number, [*started, *roof]))  # a round that was cut off does not count
                print(f"round {number + 1} of {rounds}", flush=True)
    for entry in (entry for entry in listed if entry.kind == "engine"):
        for _ in range(STARTS - sum(row["what"] == "first token" and row["name"] == entry.name for row in rows)):
            keep(first_token(entry))


def judge_all(work: Path, setting: Setting) -> None:
    """The perplexities that are not there yet: of all files rounded, and of ours calibrated."""
    rows = FILES.load(FILES_PROTOCOL)
    known = {(row["name"], row["calibrated"]) for row in rows}
    for calibrated in (False, True):
        kinds = ("engine",) if calibrated else ("engine", "llama.cpp")
        for entry in entries(work, setting.batches() if calibrated else None):
            if entry.kind in kinds and (entry.name, calibrated) not in known:
                rows.append(quality(entry, setting, calibrated))
                FILES.write(FILES_PROTOCOL, rows)
                print(f"{entry.name}: perplexity {rows[-1]['perplexity']:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--speed", action="store_true", help="leave the perplexities for another time")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    options.work.mkdir(parents=True, exist_ok=True)
    setting = settings(Path(options.data))["smollm2"]
    protocol = {**PROTOCOL, **held()}
    rows = SPEED.load(protocol)

    def keep(*found: Row) -> None:
        rows.extend(found)
        SPEED.write(protocol, rows)

    time_all(entries(options.work), rows, options.rounds, keep)
    if not options.speed:
        judge_all(options.work, setting)
    print(draw(rows, SPEED.picture()))
    print_goals(SPEED.write(protocol, rows))


if __name__ == "__main__":
    main()
