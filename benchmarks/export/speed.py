"""Tokens per second of exported files in their engines, beside potq's engine: rounds as in ``decode/speed.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.common.results import Row
from benchmarks.decode.contestants import Entry
from benchmarks.decode.speed import speed_round, workers
from benchmarks.export import onnx as export_onnx
from benchmarks.export.models import Subject


def speed_rows(subject: Subject, work: Path, rounds: int, rows: list[Row], keep: Callable[..., None]) -> None:
    """Rounds that are not among ``rows`` yet; one that is cut off does not count."""
    left = set(range(rounds)) - {row["round"] for row in rows if row["what"] == "speed"}
    if left:
        with workers(_entries(subject, work)) as started:
            for number in sorted(left):
                keep(*speed_round(number, started))


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
