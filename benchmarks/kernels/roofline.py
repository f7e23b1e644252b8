"""What bounds products and whole texts: ``python -m benchmarks.kernels.roofline --model FOLDER`` (two minutes; Linux).

Products of weights that stay in the second-level cache, and of weights that come from memory, beside both roofs: int8
multiply-adds out of registers, and bytes that are merely read. And where the engine's time goes, decoding and reading a
prompt with a 4-bit FOLDER, by the samples of ``perf`` (``apt-get install linux-perf``).
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.common.goals import Row
from benchmarks.kernels.cpu import footprint, time_interleaved
from benchmarks.kernels.goals import ROOFLINE
from benchmarks.peers.kernels.int8_peak import int8_peak
from benchmarks.peers.kernels.ours import Ours
from benchmarks.peers.kernels.peer import Case, Peer, copies_for
from benchmarks.peers.kernels.read_bandwidth import ReadBandwidth
from benchmarks.peers.packages import THREADS

SCHEMES = ("pot4", "apot4", "pot3", "pot2")
PAIRS = {"pot4": 2, "apot4": 2, "pot3": 16, "pot2": 16, "any int8": 1}
"""Of products that AVX2 adds in 16 bits (csrc/kernels/isa/avx2.cpp): the largest level tells. Of any int8 no two fit."""
ROWS = (1, 16, 128)  # of activations
CACHED, COPIES = (1536, 1024), 2  # a thread has half of their 1.6 MB
COLD = (4096, 4096)
ROUNDS, NEW_TOKENS, PROMPT_TOKENS, REPEATS = 7, 128, 512, 8
PARTS = {
    "products": r"multiply_|Integer<|fine_sums|decode_blocks",
    "attention": r"score|mix|softmax|interleave",
    "rounding activations": r"prepare",
    "waiting": r"Pool::",
}
"""Of the engine's time, by functions' names; norms, activation functions and the rest are "other"."""
PROTOCOL = {
    "threads": THREADS,
    "cached": f"{COPIES} weights of {CACHED[0]}x{CACHED[1]} in one native call",
    "from memory": f"{COLD[0]}x{COLD[1]}, copies that exceed the last-level cache",
    "int8 peak": "of a scheme: dot products out of registers; with AVX2 as many additions in 16 bits as its levels allow",
    "rounds": ROUNDS,
    "profile": f"perf, CPU clock: {REPEATS} times {NEW_TOKENS} tokens after one, or a prompt of {PROMPT_TOKENS}",
}
DECODE = "engine.generate([1], max_new_tokens={count}, stop_token_ids=()).finish()"
PREFILL = "engine.generate([100] * {count}, max_new_tokens=1).finish()"
PROGRAM = """
import potq
engine = potq.Engine({folder!r}, threads={threads}, context=1024)
for _ in range({repeats}):
    engine.reset()
    {work}
"""


def products(where: str, m: int, schemes: Sequence[str] = SCHEMES) -> Iterator[Row]:
    """Every scheme, and memory that is read in the same rounds."""
    case = Case(*(CACHED if where == "cache" else COLD), m)
    peers: list[Peer] = [Ours(scheme) for scheme in schemes]
    if where == "memory":
        peers.append(ReadBandwidth("sum"))
    copies = {peer.name: COPIES if where == "cache" else copies_for(peer, case, footprint(m)) for peer in peers}
    ready = {peer.name: peer.prepare(case, copies[peer.name], seed) for seed, peer in enumerate(peers)}
    times = time_interleaved(ready, ROUNDS)
    for peer in peers:
        seconds = statistics.median(times[peer.name]) / copies[peer.name]
        size = peer.bits(case) * case.rows * case.columns / 8
        row: Row = {"what": "product", "where": where, "m": m, "name": peer.name, "gbytes_per_s": size / seconds / 1e9}
        yield row if peer.group == "bandwidth" else row | {"gops": case.operations / seconds / 1e9}


def profile(folder: Path, text: str, work: str) -> Row:
    """Shares of the samples that fell into the library's functions."""
    if not shutil.which("perf"):
        raise SystemExit("perf is missing, which profiles the engine: apt-get install linux-perf")
    program = PROGRAM.format(folder=str(folder), threads=THREADS, repeats=REPEATS, work=work)
    with tempfile.TemporaryDirectory() as made:
        data = str(Path(made, "perf.data"))
        record = ["perf", "record", "-q", "-F", "1000", "-e", "cpu-clock", "-o", data, sys.executable, "-c", program]
        subprocess.run(record, check=True, capture_output=True)
        report = ["perf", "report", "-i", data, "--stdio", "-F", "overhead,dso,symbol", "--percent-limit", "0"]
        lines = subprocess.run(report, check=True, capture_output=True, text=True).stdout
    return {"what": "profile", "text": text, "shares": shares(lines)}


def shares(report: str) -> dict[str, float]:
    """By part of the work, from ``perf report``; what is not the library's (loading a model, Python) does not count."""
    found = dict.fromkeys([*PARTS, "other"], 0.0)
    for line in report.splitlines():
        match = re.match(r"\s*([\d.]+)%\s+(\S+)\s+\[.\]\s+(.*)", line)
        if match is None or "libpotq" not in match[2] or "pack" in match[3]:
            continue
        if match[3].startswith("0x"):
            raise SystemExit("the library has no symbols: set POTQ_LIBRARY=PATH to one built by cmake and not stripped")
        part = next((part for part, pattern in PARTS.items() if re.search(pattern, match[3])), "other")
        found[part] += float(match[1])
    whole = sum(found.values())
    if not whole:
        raise SystemExit("perf found no sample in the library")
    return {part: round(share / whole, 4) for part, share in found.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a packed folder that the engine runs")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    peaks = {pairs: int8_peak(pairs) for pairs in set(PAIRS.values())}
    rows: list[Row] = [{"what": "int8 peak", "name": name, "gops": peaks[pairs]} for name, pairs in PAIRS.items()]
    for where in ("cache", "memory"):
        for m in ROWS:
            rows += products(where, m)
    rows.append(profile(options.model, "decode", DECODE.format(count=NEW_TOKENS)))
    rows.append(profile(options.model, "prefill", PREFILL.format(count=PROMPT_TOKENS)))
    ROOFLINE.write(PROTOCOL, rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
