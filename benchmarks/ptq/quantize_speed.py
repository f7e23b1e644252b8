"""Time and memory of quantizing and loading: ``python -m benchmarks.ptq.quantize_speed`` (five minutes).

SmolLM2-135M, every weight (embedding and head included), scales of least squared error. Each measurement runs in a
process of its own. Memory is what the process holds itself (anonymous pages, sampled) beyond what it held after its imports,
and its peak resident size, which also counts the pages of the mapped input file; both are read from /proc, so Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.goals import Row, print_goals
from benchmarks.ptq.goals import QUANTIZE_SPEED, SHARD

MODEL = 134_515_008 * 4  # bytes of SmolLM2's parameters in float32
RUNS = 3
PROTOCOL = {"model": "SmolLM2-135M, float32", "effort": "fast", "runs": RUNS, "source_shards_bytes": SHARD}


class Memory:
    """The largest anonymous memory (bytes) of this process while the block runs, sampled every 5 ms."""

    def __enter__(self) -> Memory:
        self.base = self.peak = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


def anonymous_bytes() -> int:
    return status_bytes("RssAnon")


def status_bytes(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def export(folder: Path) -> dict[str, Any]:
    """The source: SmolLM2 in full precision, in shards."""
    import potq

    potq.load("smollm2").save_pretrained(folder, max_shard_size=SHARD)
    return {}


def stream(source: Path, output: Path, scheme: str, embedding: str) -> dict[str, Any]:
    """Quantize from a safetensors folder and save."""
    import potq
    from potq.checkpoint import loading  # noqa: F401  # counted as imports, not as work

    import_transformers()
    config = potq.PoTConfig(scheme, embedding=embedding, effort=PROTOCOL["effort"])
    with Memory() as memory:
        began = time.perf_counter()
        model = potq.load(source, config)
        seconds = time.perf_counter() - began
    potq.save(model, output, force=True)
    return {
        "seconds": seconds,
        "anonymous_bytes": memory.peak - memory.base,
        "peak_resident_bytes": status_bytes("VmHWM"),
        "file_bytes": (output / "model.safetensors").stat().st_size,
        "bits_per_weight": model.quant_report.quantized_bits_per_weight,
    }


def load(folder: Path) -> dict[str, Any]:
    """Load a packed checkpoint: the call alone, and the whole of a fresh process up to a loaded model."""
    began = time.perf_counter()
    import potq

    import_transformers()
    imported = time.perf_counter()
    potq.load(folder)
    return {"seconds": time.perf_counter() - imported, "seconds_with_imports": time.perf_counter() - began}


def import_transformers() -> None:
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401


def in_process(task: str, *arguments: object) -> dict[str, Any]:
    """Run one of the functions above in a fresh Python."""
    command = [sys.executable, "-m", "benchmarks.ptq.quantize_speed", task, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def help_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "potq", "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def measure(console: Console) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "source"), Path(folder, "packed")
        in_process("export", source)
        for run in range(RUNS):
            for scheme, embedding in (("pot4", "pot4"), ("pot4", "int8"), ("apot4", "apot4")):
                result = in_process("stream", source, output, scheme, embedding)
                rows.append({"task": "quantize", "scheme": scheme, "embedding": embedding, "run": run, **result})
                console.print(rows[-1])
            rows.append({"task": "load", "run": run, **in_process("load", output)})
            rows.append({"task": "help", "run": run, "seconds": help_seconds()})
            console.print(rows[-2:])
    return rows


def main() -> None:
    tasks: dict[str, Callable[..., dict[str, Any]]] = {"export": export, "stream": stream, "load": load}
    if len(sys.argv) > 1:
        task, *arguments = sys.argv[1:]
        paths = [Path(a) if "/" in a else a for a in arguments]
        print(json.dumps(tasks[task](*paths)))
        return
    if not Path("/proc/self/status").exists():
        sys.exit("ptq/quantize_speed.py reads memory from /proc and runs on Linux only")
    rows = measure(Console())
    QUANTIZE_SPEED.write(PROTOCOL, rows)
    print_goals(QUANTIZE_SPEED.judge(rows))


if __name__ == "__main__":
    main()
