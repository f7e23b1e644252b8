"""Tokens per second of exported files in their engines, beside potq's engine on the checkpoint, in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from decode import Worker
from decode_contestants import Entry
from export_models import Subject
from results_io import Row

NEW_TOKENS, PROMPT_TOKENS = 64, 128


def speed_rows(subject: Subject, work: Path, rounds: int, rows: list[Row], keep: Callable[..., None]) -> None:
    """Rounds that are not among ``rows`` yet; one that is cut off does not count."""
    done = {row["round"] for row in rows if row["what"] == "speed"}
    left = [number for number in range(rounds) if number not in done]
    if not left:
        return
    started: list[Worker] = []
    try:
        for entry in _entries(subject, work):
            worker = Worker(entry)
            if "unavailable" in worker.facts:
                print(f"not measured: {entry.name}: {worker.facts['unavailable']}")
                worker.close()
            else:
                started.append(worker)
        for number in left:
            shift = number % len(started)
            keep(*[_row(worker, number) for worker in [*started[shift:], *started[:shift]]])
    finally:
        for worker in started:
            worker.close()


def _entries(subject: Subject, work: Path) -> list[Entry]:
    found = []
    for scheme in subject.schemes:
        file = f"{subject.name}-{scheme}"
        candidates = (
            Entry(f"{scheme}: potq", "engine", str(work / file)),
            Entry(f"{scheme}: gguf", "llama.cpp", str(work / "gguf" / f"{file}.gguf")),
            Entry(f"{scheme}: compressed-tensors", "stock", str(work / "compressed-tensors" / file)),
            Entry(f"{scheme}: onnx", "onnx", str(work / "onnx" / file)),
        )
        found += [entry for entry in candidates if Path(entry.argument).exists()]
    return found


def _row(worker: Worker, number: int) -> Row:
    worker.ask("decode", 1, 4)  # wakes threads, and brings its own weights where they would be
    row: Row = {"what": "speed", "name": worker.entry.name, "round": number, **worker.facts}
    row["decode"] = NEW_TOKENS / worker.ask("decode", 1, NEW_TOKENS)
    row["prefill"] = PROMPT_TOKENS / worker.ask("prefill", list(range(100, 100 + PROMPT_TOKENS)))
    time.sleep(0.2)  # threads that still spin fall asleep
    return row
