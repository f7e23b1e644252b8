"""Whether this machine is as fast as it was: ``python -m benchmarks.decode.smoke`` (two minutes; ``--write`` keeps figures).

Decoding and reading a prompt by the engine, and three products, each as a ratio to torch's dynamic int8 measured beside it
in the same rounds: clocks and neighbours move both. A ratio below ``LEAST`` of the one in ``benchmarks/results`` for this
kind of machine is named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.common.goals import Row
from benchmarks.common.results import described, read
from benchmarks.decode.contestants import Entry
from benchmarks.decode.goals import SMOKE
from benchmarks.decode.speed import workers
from benchmarks.kernels.cpu import footprint, time_interleaved
from benchmarks.peers.kernels.ours import Ours
from benchmarks.peers.kernels.peer import Case, Peer, Work, copies_for
from benchmarks.peers.kernels.torch_int8 import PEERS as TORCH
from benchmarks.peers.packages import THREADS, UnavailableError

ROUNDS, TOKENS, PROMPT, LEAST = 5, 24, 512, 0.85
CASES = tuple(Case(2048, 2048, m) for m in (1, 16, 128))
PROTOCOL = {
    "ratio": "torch's dynamic int8, the faster engine of it, takes so many times as long; median of the rounds' ratios",
    "model": "SmolLM2-135M, pot4 throughout; torch: Hugging Face's modules, linears in int8",
    "rounds": ROUNDS,
    "threads": THREADS,
}


def texts(folder: Path) -> Iterator[Row]:
    """Decoding and a prompt."""
    packed = folder / "pot4"
    command = [sys.executable, "-m", "potq", "quantize", "smollm2", str(packed), "--scheme", "pot4", "--embedding", "pot4"]
    subprocess.run(command, check=True, capture_output=True)
    entries = [Entry("potq", "engine", str(packed)), Entry("torch", "huggingface", "int8")]
    seconds: dict[str, list[list[float]]] = {"decode": [], "prefill": []}
    with workers(entries) as started:
        for _ in range(ROUNDS):
            for worker in started:
                worker.ask("decode", 1, 4)
            seconds["decode"].append([worker.ask("decode", 1, TOKENS) for worker in started])
            seconds["prefill"].append([worker.ask("prefill", list(range(100, 100 + PROMPT))) for worker in started])
    for what, rounds in seconds.items():
        yield _row(what, [theirs / ours for ours, theirs in rounds])


def products() -> Iterator[Row]:
    """Products of 4-bit weights with 1, 16 and 128 rows."""
    for case in CASES:
        ready: dict[str, Work] = {}
        copies: dict[str, int] = {}
        peers: tuple[Peer, ...] = (Ours("pot4"), *TORCH)
        for seed, peer in enumerate(peers):
            copies[peer.name] = copies_for(peer, case, footprint(case.m))
            try:
                ready[peer.name] = peer.prepare(case, copies[peer.name], seed)
            except UnavailableError:
                continue
        times = {name: [each / copies[name] for each in found] for name, found in time_interleaved(ready, ROUNDS).items()}
        ours = times.pop("pot4")
        fastest = min(times.values(), key=statistics.median)
        yield _row(f"{case.shape}, m = {case.m}", [theirs / own for own, theirs in zip(ours, fastest, strict=True)])


def _row(what: str, ratios: list[float]) -> Row:
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "what": what,
        "ratio": round(statistics.median(ratios), 4),
        "quartiles": [round(quarters[0], 4), round(quarters[2], 4)],
    }


def compared(rows: list[Row], say: Callable[[str], None]) -> bool:
    """Whether no row fell below what is kept for this kind of machine; tells each."""
    content = read(SMOKE.file()) if SMOKE.file().exists() else {"rows": []}
    other = "machine" in content and SMOKE.elsewhere(content["machine"])
    kept = {} if other else {row["what"]: row["ratio"] for row in content["rows"]}
    nothing = f"not compared: kept is {described(content['machine'])}" if other else "none kept for this kind of machine"
    good = True
    for row in rows:
        before = kept.get(row["what"])
        fell = before is not None and row["ratio"] < LEAST * before
        good &= not fell
        then = f"kept {before:.2f}{', FELL' if fell else ''}" if before is not None else nothing
        low, high = row["quartiles"]
        say(f"{row['what']:20} {row['ratio']:6.2f} of torch's int8 (quartiles {low:.2f} to {high:.2f}; {then})")
    return good


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures as what this kind of machine can do")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    rows = list(products())
    with tempfile.TemporaryDirectory() as folder:
        rows += texts(Path(folder))
    good = compared(rows, print)
    if options.write:
        SMOKE.write(PROTOCOL, rows)
    elif not good:
        sys.exit(f"a ratio fell below {LEAST} of what is kept in {SMOKE.file().name}")


if __name__ == "__main__":
    main()
