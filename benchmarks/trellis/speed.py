"""How fast a trellis is computed: ``python -m benchmarks.trellis.speed --work DIR`` (3 minutes, 2 more at first).

Products of weights in the caches and from memory (``benchmarks.kernels.roofline``), and texts of SmolLM2-135M by the engine,
with every matrix in one scheme, embedding and head included. All contestants go in turn, round by round.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.common.goals import Row, print_goals
from benchmarks.decode.contestants import Engine
from benchmarks.decode.files import Ours
from benchmarks.kernels.roofline import CACHED, COLD, COPIES, products
from benchmarks.kernels.roofline import ROUNDS as PRODUCT_ROUNDS
from benchmarks.peers.packages import THREADS
from benchmarks.trellis.goals import SPEED

PRODUCTS = ("pot2", "pot2t", "int2t", "pot3nz", "apot3", "apot3t", "pot4")
DECODED = ("pot2", "pot2t", "apot3t", "pot4")
ROWS = (1, 16)
ROUNDS, TOKENS = 9, 128
PROTOCOL = {
    "threads": THREADS,
    "cached": f"{COPIES} weights of {CACHED[0]}x{CACHED[1]} in one native call",
    "from memory": f"{COLD[0]}x{COLD[1]}, copies that exceed the last-level cache",
    "decode": f"SmolLM2-135M, {TOKENS} tokens after one, the median of {ROUNDS} rounds",
    "rounds": PRODUCT_ROUNDS,
}


def texts(work: Path) -> Iterator[Row]:
    engines = {scheme: Engine(str(Ours(scheme, scheme, scheme).folder(work))) for scheme in DECODED}
    seconds: dict[str, list[float]] = {scheme: [] for scheme in engines}
    for turn in range(ROUNDS + 1):  # the first warms up
        for scheme in sorted(engines, key=lambda name: (DECODED.index(name) + turn) % len(DECODED)):
            seconds[scheme].append(engines[scheme].decode(1, TOKENS))
    for scheme, engine in engines.items():
        speed = TOKENS / statistics.median(seconds[scheme][1:])
        yield {"what": "decode", "name": scheme, "tokens_per_s": speed, **engine.facts()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the packed models, 200 MB")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    rows: list[Row] = []
    for where in ("cache", "memory"):
        for m in ROWS:
            rows += products(where, m, PRODUCTS)
    rows += texts(options.work)
    print_goals(SPEED.write(PROTOCOL, rows))


if __name__ == "__main__":
    main()
