"""Matrix products with packed weights against other libraries': ``python -m benchmarks.kernels.cpu`` (half an hour).

Every contestant of ``peers/`` computes ``y = x W^T`` for weights of the shapes of GPT-2, SmolLM2 and a 7B Llama, with 1 to
128 rows of activations, on two threads. Weights are cold: each contestant holds so many copies of the weight that they
exceed the last-level cache (``FOOTPRINT`` times, or a part would still be found there), and a pass goes over all of them.

All contestants of one shape and m are timed in turn, round by round. Machines change by a quarter from run to run, so only
ratios within a round count, and their median over the rounds. A short sleep before each timing lets the threads of the
contestant before stop spinning; a pass that is not timed wakes its own.

llama.cpp comes from the package xllamacpp, or from the folder of ggml libraries that ``POTQ_GGML`` names: built for the
processor at hand, it is the stronger peer. Missing packages and shapes that a library refuses are rows with the reason.
A killed run resumes. It wants a machine with nothing else to do, and 12 GB of memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.goals import Row, print_goals
from benchmarks.forced import held
from benchmarks.kernels.goals import CPU
from benchmarks.kernels.plot import draw
from benchmarks.kernels.report import cell_table
from benchmarks.kernels.rows import Results
from benchmarks.peers.ggml_library import ggml
from benchmarks.peers.kernels import PEERS
from benchmarks.peers.kernels.int8_peak import int8_peak
from benchmarks.peers.kernels.peer import Case, Peer, Work, copies_for, weight_bytes
from benchmarks.peers.packages import THREADS, UnavailableError

SHAPES = (
    *((768, 768), (2304, 768), (3072, 768), (768, 3072), (50257, 768)),  # GPT-2
    *((576, 576), (1536, 576), (576, 1536), (49152, 576)),  # SmolLM2-135M
    *((4096, 4096), (11008, 4096), (4096, 11008)),  # Llama 7B
)
ROWS = (1, 4, 16, 128)
CHECKED = (Case(768, 768, 1), Case(264, 512, 5), Case(1008, 768, 33))
FOOTPRINT = {"m <= 16": 8, "m > 16": 2}  # times the last-level cache; products with many rows are not bound by memory
MOST = 2**30  # bytes of footprint, whatever the cache
TIMING, WARM, REST = 5e-3, 20e-3, 10e-3  # seconds: the least that is timed; passes below WARM are run once before; sleep
DISTURBED = 0.05  # of a core taken by other processes: the cell should be measured again


def protocol(rounds: int) -> dict[str, Any]:
    try:
        llama = ggml().description()
    except UnavailableError as error:
        llama = f"absent: {error}"
    return {
        "threads": THREADS,
        "rounds": rounds,
        "least_seconds_per_timing": TIMING,
        "last_level_cache_bytes": last_level_cache(),
        "footprint_in_caches": FOOTPRINT,
        "time": "of a pass over all copies / copies; ours, ONNX Runtime and llama.cpp make a pass in one native call, "
        "torch in a scripted loop (about 1 us per product)",
        "ratios": "per round, then their median",
        "llama.cpp": llama,
        **held(),
    }


def last_level_cache() -> int:
    """Bytes; 32 MiB where the system does not tell."""
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return int(caches[-1].read_text().strip().removesuffix("K")) * 1024 if caches else 32 * 2**20


def footprint(m: int) -> int:
    return min(MOST, last_level_cache() * FOOTPRINT["m <= 16" if m <= 16 else "m > 16"])


def measure(case: Case, rounds: int) -> list[Row]:
    """The rows of one cell: every contestant, timed or skipped."""
    rows, ready = prepare(case)
    others, began = others_seconds(), time.perf_counter()
    timed = time_interleaved(ready, rounds)
    disturbed = (others_seconds() - others) / (time.perf_counter() - began)
    for peer in PEERS:
        row = rows[peer.name]
        if peer.name in timed:
            row.update(figures(peer, case, [seconds / row["copies"] for seconds in timed[peer.name]]))
        if peer.group == "bandwidth" and disturbed > DISTURBED:
            row["note"] = f"other processes took {disturbed:.0%} of a core"
    for work in ready.values():
        work.close()
    return list(rows.values())


def prepare(case: Case) -> tuple[dict[str, Row], dict[str, Work]]:
    """Every contestant's row, and the work of those that can."""
    rows: dict[str, Row] = {}
    ready: dict[str, Work] = {}
    for seed, peer in enumerate(PEERS):
        row: Row = {"shape": case.shape, "m": case.m, "contestant": peer.name, "group": peer.group}
        copies = copies_for(peer, case, footprint(case.m))
        try:
            ready[peer.name] = peer.prepare(case, copies, seed)
        except UnavailableError as error:
            row["skipped"] = str(error)
        else:
            row.update(bits_per_weight=peer.bits(case), copies=copies, note=ready[peer.name].note)
        rows[peer.name] = row
    return rows, ready


def others_seconds() -> float:
    """Processor time that all other processes have used since the machine was started (Linux; elsewhere 0)."""
    file = Path("/proc/stat")
    if not file.exists():
        return 0.0
    user, nice, system = (int(field) for field in file.read_text().split(maxsplit=4)[1:4])
    own = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def figures(peer: Peer, case: Case, seconds: Sequence[float]) -> Row:
    median = statistics.median(seconds)
    return {
        "microseconds": round(median * 1e6, 3),
        "rounds_us": [round(t * 1e6, 3) for t in seconds],
        "gbytes_per_s": round(weight_bytes(peer, case) / median / 1e9, 3),
        "gops": round(case.operations / median / 1e9, 2) if peer.group != "bandwidth" else None,
    }


def time_interleaved(ready: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of a pass, per contestant and round; every round begins with another contestant."""
    once = {name: seconds_of(work, 1) for name, work in ready.items()}
    once = {name: min(once[name], seconds_of(work, 1)) for name, work in ready.items()}
    passes = {name: max(1, round(TIMING / seconds + 0.5)) for name, seconds in once.items()}
    times: dict[str, list[float]] = {name: [] for name in ready}
    names = list(ready)
    for turn in range(rounds):
        first = turn * len(names) // rounds
        for name in names[first:] + names[:first]:
            time.sleep(REST)
            if once[name] < WARM:
                ready[name].run()
            times[name].append(seconds_of(ready[name], passes[name]) / passes[name])
    return times


def seconds_of(work: Work, passes: int) -> float:
    began = time.perf_counter()
    for _ in range(passes):
        work.run()
    return time.perf_counter() - began


def check(console: Console) -> bool:
    """Whether every contestant computes the product of its own weight, within what its activations' rounding explains."""
    good = True
    for case, peer in ((case, peer) for case in CHECKED for peer in PEERS if peer.group != "bandwidth"):
        try:
            work = peer.prepare(case, 3, 0)
        except UnavailableError as reason:
            console.print(f"{case.shape} m={case.m} {peer.name}: skipped, {reason}")
            continue
        work.run()
        expected = case.input(0) @ work.weight().T
        error = float((work.output() - expected).norm() / expected.norm())
        work.close()
        good &= error < peer.tolerance
        verdict = "ok" if error < peer.tolerance else "WRONG"
        console.print(f"{case.shape} m={case.m} {peer.name}: relative error {error:.1e}, {verdict} {work.note}")
    return good


def cells(arguments: argparse.Namespace) -> Iterator[Case]:
    for m in arguments.m:
        for rows, columns in arguments.shapes:
            yield Case(rows, columns, m)


def extras() -> Iterator[Row]:
    """What is measured once a run."""
    yield {"task": "int8 peak", "gops": int8_peak()}


def run(arguments: argparse.Namespace, console: Console) -> None:
    settings, todo = protocol(arguments.rounds), list(cells(arguments))
    rows = CPU.load(settings)
    if not rows and CPU.file().exists():
        console.print("the results at hand are of other settings, and will be replaced")
    if arguments.fresh:
        again = {(case.shape, case.m) for case in todo}
        rows = [row for row in rows if "task" not in row and (row["shape"], row["m"]) not in again]
    if not any("task" in row for row in rows):
        rows.extend(extras())
    done = {(row.get("shape"), row.get("m")) for row in rows}
    for case in todo:
        if (case.shape, case.m) not in done:
            rows.extend(measure(case, arguments.rounds))
            gc.collect()
            CPU.write(settings, rows)
        console.print(cell_table(Results(rows), case))
    goals = CPU.write(settings, rows)
    console.print(*(row for row in rows if "task" in row), sep="\n")
    print_goals(goals)
    console.print(draw(rows, CPU.picture()))


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time packed products against other libraries'.")
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=SHAPES, metavar="OUTxIN", help="default: all")
    parser.add_argument("--m", nargs="+", type=int, default=ROWS, help="rows of activations")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each contestant in a cell")
    parser.add_argument("--fresh", action="store_true", help="measure the chosen cells again")
    parser.add_argument("--check", action="store_true", help="only check that every contestant computes what it should")
    return parser.parse_args(argv)


def shape_of(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


@torch.inference_mode()
def main() -> None:
    arguments, console = arguments_of(sys.argv[1:]), Console()
    torch.set_num_threads(THREADS)
    if arguments.check:
        sys.exit(0 if check(console) else "a contestant computes something else")
    run(arguments, console)


if __name__ == "__main__":
    main()
