"""A model of Llama-3-8B's shapes on a small machine: ``python -m benchmarks.scale.measure PART --work DIR [--data DIR]``.

* ``memory``: ``balanced`` on all 32 blocks, the most memory at one time (hours; 16 GB of DIR for the model, 5 GB for what
  comes out; any machine that has the memory).
* ``time``: on two of the blocks, what the estimate said and what it took; and the most memory, until all are measured.
* ``ranks``: SmolLM2-135M, one process of one thread, and two that share the work.
* ``experts``: a packed stack of experts against packed linears of the same weights.

Weights are random, in bfloat16. ``--data`` (or the environment variable POTQ_DATA) is a folder with
``tinyshakespeare/input.txt``, the calibration text. Every part but ``memory`` wants a machine that does nothing else. Rows
are kept as they come; a killed run of ``memory`` goes on after the last block that it finished, and knows the most memory
until then. ``--tiny`` tries a part on a tiny model and keeps no row.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.common.goals import Row, print_goals
from benchmarks.scale.folders import LLAMA3_8B, TINY, Shapes, write
from benchmarks.scale.goals import EXPERTS, MEMORY, PARTS, RANKS, SCALE, TIME
from benchmarks.scale.watched import Watched, potq, watched

WINDOW, WINDOWS, SCHEME, THREADS = 512, {MEMORY: 8, TIME: 16, RANKS: 16}, "pot4", 2
PROTOCOL = {
    "model": {"class": "LlamaForCausalLM", **asdict(LLAMA3_8B), "weights": "random, bfloat16"},
    "scheme": f"{SCHEME}, embedding and head int8, effort balanced",
    "calibration": f"windows of {WINDOW} bytes of tiny Shakespeare (ranks: tokens)",
    "windows": WINDOWS,
    "memory": "potq quantize --stream from the shell, five looks a second: all that is resident, mapped files included",
    "time": "--stream, two blocks, embedding and head; the estimate as the command says it, the time from loading to saving",
    "ranks": "SmolLM2-135M, whole commands: one process of one thread, then two under torchrun of one thread each",
    "experts": "a Mixtral block of 8 experts of 1024 x 3584, two to a token; the same tokens and weights on either side",
    "threads": {MEMORY: THREADS, TIME: THREADS, RANKS: 1, EXPERTS: THREADS},
}
_SECONDS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Bench:
    """What the parts are measured on."""

    shapes: Shapes
    work: Path
    text: Path
    model: str
    rounds: int

    def memory(self) -> Iterator[Row]:
        found = self._quantized(self.shapes, MEMORY, self.work / "memory-until-now.json")
        yield {"part": MEMORY, "blocks": self.shapes.blocks, **_facts(found), **self._beside(found, MEMORY)}

    def time(self) -> Iterator[Row]:
        shapes = replace(self.shapes, blocks=2)
        for number in range(self.rounds):
            found = self._quantized(shapes, TIME)
            expected, seconds = estimated(found.told), found.json()["seconds"]
            times = {"estimated_seconds": expected, "seconds": seconds, "ratio": expected / seconds}
            facts = {**_facts(found), **self._beside(found, TIME)}
            yield {"part": TIME, "blocks": shapes.blocks, "round": number, **facts, **times}

    def ranks(self) -> Iterator[Row]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "potq"]
        for number in range(self.rounds):
            one = self._watched([*potq(), *self._words(self.model, RANKS)], 1).seconds
            two = self._watched([*launcher, *self._words(self.model, RANKS)], 1).seconds
            yield {"part": RANKS, "round": number, "one": one, "two": two, "speedup": one / two}

    def experts(self) -> Iterator[Row]:
        import torch

        from benchmarks.scale.experts import rounds

        torch.set_num_threads(THREADS)
        yield from rounds(self.rounds)

    def _quantized(self, shapes: Shapes, part: str, kept: Path | None = None) -> Watched:
        return self._watched([*potq(), *self._words(str(write(shapes, self.work)), part)], THREADS, kept)

    def _beside(self, found: Watched, part: str) -> Row:
        hidden = WINDOWS[part] * WINDOW * self.shapes.width * 4
        return {"hidden_states": hidden, "beside_cache": found.resident - hidden}

    def _words(self, model: str, part: str) -> list[str]:
        out = self.work / f"{part}-packed"
        shutil.rmtree(out, ignore_errors=True)
        return [
            *("quantize", model, str(out), "--json", "--scheme", SCHEME, "--effort", "balanced"),
            *("--calibration", str(self.text), f"calibration.windows={WINDOWS[part]}", f"calibration.window={WINDOW}"),
            *(["--stream"] if part in (MEMORY, TIME) else []),
        ]

    def _watched(self, command: list[str], threads: int, kept: Path | None = None) -> Watched:
        return watched(command, threads=threads, folder=self.work, kept=kept, TMPDIR=str(self.work))


def _facts(found: Watched) -> Row:
    return {"wall_seconds": found.seconds, "resident": found.resident, "private": found.private}


def estimated(told: str) -> float:
    """Seconds that ``potq quantize`` said it would take.

    Raises:
        SystemExit: it said nothing of the kind.
    """
    found = re.search(r"quantizing: about ([\d.]+) (s|min|h),", told)
    if found is None:
        raise SystemExit(f"no estimate in what the command said:\n{told[-2000:]}")
    return float(found[1]) * _SECONDS[found[2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--work", type=Path, required=True, help="folder for models")
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts")
    parser.add_argument("--rounds", type=int, default=1, help="how often what is timed is timed")
    parser.add_argument("--model", default="smollm2", help="what ranks quantizes")
    parser.add_argument("--tiny", action="store_true", help="try it on a tiny model, and keep no row")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    options.work.mkdir(parents=True, exist_ok=True)
    text = Path(options.data) / "tinyshakespeare" / "input.txt"
    bench = Bench(TINY if options.tiny else LLAMA3_8B, options.work.resolve(), text, options.model, options.rounds)
    parts: dict[str, Callable[[], Iterator[Row]]]
    parts = {MEMORY: bench.memory, TIME: bench.time, RANKS: bench.ranks, EXPERTS: bench.experts}
    rows = [] if options.tiny else [row for row in SCALE.load(PROTOCOL) if row["part"] != options.part]
    for row in parts[options.part]():
        rows.append(row)
        print(row, flush=True)
        if not options.tiny:
            SCALE.write(PROTOCOL, rows)
    print_goals(SCALE.judge(rows))


if __name__ == "__main__":
    main()
