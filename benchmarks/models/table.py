"""Every architecture that can be made tiny, tried: ``python -m benchmarks.models.table`` (a few minutes).

Random weights, float32, ``pot4`` with ``int8`` embeddings. A row is tried in a process of its own, so that a crash is a row
like others. Rows are kept as they come; a killed run goes on. ``--again`` tries named ones once more, or all of them.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.common.goals import Row, print_goals
from benchmarks.models import check
from benchmarks.models.architectures import ARCHITECTURES, BY_NAME, Architecture
from benchmarks.models.goals import TABLE
from benchmarks.models.tiny import BATCH, LENGTH, SMALL

SECONDS = 180
PROTOCOL = {
    "models": "random weights, float32; every size that a config has set to these",
    "sizes": dict(SMALL),
    "scheme": f"{check.SCHEME}, embeddings and heads int8; balanced: {check.BATCHES} batches of {BATCH} x {LENGTH} tokens",
    "dequantized": "largest difference of an output to the dequantized model's, float activations, over the largest output",
    "saved": "outputs of the model that its own class loads, and that potq.load loads, equal in every bit",
    "streamed": "outputs of the model that is packed while its class loads it, equal in every bit",
    "lora": f"peft's LoRA, rank 4, on {check.ADAPTED} packed linears: loss after {check.STEPS} steps over the first",
}
_PRELOADED = ["torch", "transformers", "peft", "gguf", "potq.ptq.quantize", "benchmarks.models.check"]


def tried(architecture: Architecture) -> Row:
    """A row, by a process of its own.

    Raises:
        SystemExit: the model cannot even be made.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_row, args=(architecture.name, theirs))
    process.start()
    theirs.close()
    try:
        found: Row | str = ours.recv() if ours.poll(SECONDS) else f"no answer in {SECONDS} s"
    except EOFError:
        process.join()
        found = f"the process ended with {process.exitcode}"
    process.kill()
    process.join()
    if isinstance(found, str):
        return {"name": architecture.name, "kind": architecture.kind, "weights": 0, "fast": {"raw": found}}
    return found


def _send_row(name: str, connection: Connection) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        connection.send(check.row(BY_NAME[name], Path(folder)))


def measure(wanted: list[Architecture], rows: list[Row], jobs: int) -> None:
    """Try what is ``wanted``, several at a time; rows stand in the order of the list."""
    order = [each.name for each in ARCHITECTURES]
    with ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(tried, wanted):
            rows[:] = [row for row in rows if row["name"] != found["name"]] + [found]
            rows.sort(key=lambda row: order.index(row["name"]))
            TABLE.write(PROTOCOL, rows)
            print(found["name"], {key: value for key, value in found.items() if isinstance(value, dict)}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", nargs="*", metavar="NAME", choices=list(BY_NAME), help="try these (or all) once more")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    options = parser.parse_args()
    rows = [row for row in TABLE.load(PROTOCOL) if row["name"] in BY_NAME]
    known = {row["name"] for row in rows}
    again = set(BY_NAME if options.again == [] else options.again or ())
    wanted = [each for each in ARCHITECTURES if each.name in again or each.name not in known]
    measure(wanted, rows, options.jobs)
    print_goals(TABLE.write(PROTOCOL, rows))


if __name__ == "__main__":
    main()
