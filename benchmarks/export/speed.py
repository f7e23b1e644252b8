"""Tokens per second of exported files in their engines, beside potq's engine: rounds as in ``decode/speed.py``."""

from __future__ import annotations

from pathlib import Path

from benchmarks.decode.contestants import Entry
from benchmarks.decode.speed import NEW_TOKENS, PROMPT_TOKENS, speed_round, workers
from benchmarks.export import onnx as export_onnx
from benchmarks.export.goals import SPEED
from benchmarks.export.models import Subject

PROTOCOL = {
    "models": "SmolLM2-135M balanced (64 windows of 512 tokens of WikiText-2 train); embedding and head int8",
    "speed": f"2 threads; decode: {NEW_TOKENS} tokens after one; prefill: {PROMPT_TOKENS} tokens",
}


def speed(subject: Subject, work: Path, rounds: int) -> None:
    """Measure the rounds that are not there yet; one that is cut off does not count."""
    rows = SPEED.load(PROTOCOL)
    left = set(range(rounds)) - {row["round"] for row in rows}
    if left:
        with workers(_entries(subject, work)) as started:
            for number in sorted(left):
                rows.extend(speed_round(number, started))
                SPEED.write(PROTOCOL, rows)


def _entries(subject: Subject, work: Path) -> list[Entry]:
    found = []
    for scheme in subject.schemes:
        file = f"{subject.name}-{scheme}"
        exact, rounding = (work / "onnx" / f"{file}{suffix}" for suffix in ("", "-int8"))
        if exact.exists() and not rounding.exists():
            export_onnx.write(work / file, rounding, "int8")
        candidates = (
            Entry(f"{scheme}: potq", "engine", str(work / file)),
            Entry(f"{scheme}: gguf", "llama.cpp", str(work / "gguf" / f"{file}.gguf")),
            Entry(f"{scheme}: compressed-tensors", "stock", str(work / "compressed-tensors" / file)),
            Entry(f"{scheme}: onnx", "onnx", str(exact)),
            Entry(f"{scheme}: onnx, int8 inputs", "onnx", str(rounding)),
        )
        found += [entry for entry in candidates if Path(entry.argument).exists()]
    return found
