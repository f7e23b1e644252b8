"""What the efforts cost on SmolLM2-135M, in seconds and memory: ``python -m benchmarks.ptq.cost [--data DIR]``.

Linears to ``pot3``, 64 windows of 512 tokens of WikiText-2's training set; every effort in a process of its own, on a
machine that does nothing else. Loading is not counted in the time, but in the memory (peak resident size). Rows are kept as
they come; a killed run resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.ptq.goals import COST, TIMES
from benchmarks.ptq.settings import SCHEMES, SEED, Setting, settings
from potq.config import EFFORTS
from potq.ptq.estimate import estimate

SCHEME = "pot3"
PROTOCOL = {
    "model": "SmolLM2-135M, float32, linears",
    "scheme": SCHEME,
    "calibration": "64 windows of 512 tokens",
    "efforts": {name: EFFORTS[name].model_dump(mode="json") for name in TIMES},
}


def row(setting: Setting, effort: str) -> Row:
    """One effort, in this process."""
    chosen = EFFORTS[effort]
    batches = setting.batches() if chosen.calibrated else None
    model = potq.load(setting.source)
    config = potq.PoTConfig(scheme=SCHEMES[SCHEME], effort=chosen, embedding=None)
    expected = estimate(model, config, batches or [])
    began = time.perf_counter()
    potq.quantize(model, config, batches, seed=SEED)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    threads = {"threads": torch.get_num_threads()}
    guess = {"estimated_seconds": expected.seconds, "estimated_bytes": expected.bytes}
    return {"effort": effort, "seconds": seconds, "peak_bytes": peak, **guess, **threads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--effort", choices=TIMES, help="one effort in this process, its row to standard output")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    if options.effort:
        print(json.dumps(row(settings(Path(options.data))["smollm2"], options.effort)))
        return
    rows = COST.load(PROTOCOL)
    for effort in TIMES:
        if any(row["effort"] == effort for row in rows):
            continue
        command = [sys.executable, "-m", "benchmarks.ptq.cost", "--data", str(options.data), "--effort", effort]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{effort}: {rows[-1]['seconds']:.0f} s, {rows[-1]['peak_bytes'] / 1e9:.2f} GB", flush=True)
        COST.write(PROTOCOL, rows)
    print_goals(COST.judge(rows))


if __name__ == "__main__":
    main()
