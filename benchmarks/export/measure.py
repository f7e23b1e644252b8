"""Do exported files hold the very weights, and do their engines say what potq says?

``python -m benchmarks.export.measure --work DIR``

Three models: SmolLM2-135M, calibrated (``balanced``), TinyStories-656K and a nano GPT-2 that is trained here, both rounded
to nearest; embedding and head ``int8``. Per scheme and target: bytes, bits per weight, and how many weights differ when the
target's own reader reads them. GGUF files go through llama.cpp: greedy texts and perplexity by its own protocol, beside ours
on the checkpoint. llama.cpp rounds the inputs of quantized products to int8 in blocks of 32, so texts part ways where two
tokens are about as likely. Two things tell that from a wrong weight: the same file with its tensors as float32 (the
control), whose inputs are not rounded, and our modules with inputs rounded the same way. compressed-tensors folders: logits
of stock transformers in bfloat16 or float16. ONNX folders: ONNX Runtime's logits.

Tokens per second (``--speed``, SmolLM2, two threads, a machine that does nothing else): interleaved rounds, each contestant
in a process of its own; medians, ratios are medians of each round's ratio. Rows are kept as they come; a killed run resumes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.gguf_copy import copy
from benchmarks.common.goals import Row, print_goals
from benchmarks.export.agreement import logits_row, text_row
from benchmarks.export.goals import EXPORT
from benchmarks.export.models import Subject, subjects
from benchmarks.export.onnx import differences
from benchmarks.export.speed import speed
from benchmarks.export.targets import TARGETS, Target, named_weights
from benchmarks.peers.packages import UnavailableError
from potq import load

PROTOCOL = {
    "models": "rounded to nearest (fast), SmolLM2-135M balanced (64 windows of 512 tokens of WikiText-2 train); "
    "embedding and head int8; nano GPT-2: 2 layers of 128, 512 tokens, 400 steps",
    "file": "weights that differ from the checkpoint's dequantized ones, by the target's own reader; tolerance 0",
    "texts": "20 prompts of 32 tokens, 400 apart, 32 tokens greedily or to the end token; "
    "equal: each token is our likeliest",
    "perplexity": "llama.cpp's: windows of 512 (nano GPT-2: 128) tokens, BOS in front if the model has it, "
    "second half scored",
    "rounded alike": "our modules, inputs of packed linears rounded to int8 in blocks of 32 with float16 scales",
    "one token": "relative difference of logits after each of 64 texts of one token, median",
    "onnx": "logits of 64 tokens, largest difference relative to the largest logit, by ONNX Runtime alone",
}


def file_row(subject: Subject, scheme: str, target: Target, work: Path) -> Row:
    """Write, read back, compare."""
    folder, path = subject.folder(scheme, work), exported(subject, scheme, target, work)
    report = target.write(folder, path)
    found, wanted = target.read(path), named_weights(load(folder, dtype="float32"))
    shared = wanted.keys() & found.keys()
    unequal = sum(int((wanted[name] != found[name].float()).sum()) for name in shared)
    return {
        "what": "file",
        **case(subject, scheme, target),
        "bytes": report.nbytes,
        "checkpoint_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "bits_per_weight": report.quantized_bits_per_weight,
        "types": sorted({tensor.type for tensor in report.tensors if tensor.scheme}),
        "tensors": len(shared),
        "missing": len(wanted.keys() - found.keys()),
        "unequal_weights": unequal,
    }


def exported(subject: Subject, scheme: str, target: Target, work: Path) -> Path:
    return work / target.name / f"{subject.name}-{scheme}{target.suffix}".replace(" ", "-")


def case(subject: Subject, scheme: str, target: Target) -> Row:
    return {"model": subject.name, "scheme": scheme, "target": target.name}


def agreement_rows(subject: Subject, scheme: str, target: Target, work: Path) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """What is measured of a written file: the row's key, and what measures it."""
    folder, path = subject.folder(scheme, work), exported(subject, scheme, target, work)
    key = {"what": "agreement", **case(subject, scheme, target)}
    if target.name == "gguf":
        yield key | {"file": "as exported"}, lambda: text_row(subject, folder, path)
        yield key | {"file": "float32 control"}, lambda: _control_row(subject, folder, path)
    elif target.name == "compressed-tensors":
        yield key, lambda: logits_row(subject, folder, path)
    elif target.name == "onnx":
        ids = subject.scored()[0, :64]
        yield key, lambda: {"logits": len(ids), **differences(folder, path, ids, torch.get_num_threads())}


def _control_row(subject: Subject, folder: Path, path: Path) -> Row:
    output = path.with_suffix(".float32.gguf")
    copy(path, output)  # every tensor as float32: llama.cpp then rounds no inputs
    try:
        return text_row(subject, folder, output)
    finally:
        output.unlink()


def measure(subject: Subject, scheme: str, target: Target, work: Path, rows: list[Row], keep: Callable[[Row], None]) -> None:
    """The rows that are not there yet."""
    key = {"what": "file", **case(subject, scheme, target)}
    if not known(rows, key) or not exported(subject, scheme, target, work).exists():
        rows[:] = [row for row in rows if not known([row], key)]
        keep(file_row(subject, scheme, target, work))
    for each, row in agreement_rows(subject, scheme, target, work):
        if not known(rows, each):
            keep(each | row())


def known(rows: list[Row], key: dict[str, Any]) -> bool:
    return any(key.items() <= row.items() for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and files")
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts")
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--speed", type=int, default=0, metavar="ROUNDS", help="rounds of tokens per second")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    for target in TARGETS:
        (options.work / target.name).mkdir(parents=True, exist_ok=True)
    rows = EXPORT.load(PROTOCOL)

    def keep(*found: Row) -> None:
        rows.extend(found)
        EXPORT.write(PROTOCOL, rows)
        print(*found, sep="\n", flush=True)

    listed = subjects(Path(options.data), options.work)
    for subject in listed.values():
        if options.models is None or subject.name in options.models:
            measure_all(subject, options.work, rows, keep)
    if options.speed:
        speed(listed["SmolLM2-135M"], options.work, options.speed)
    EXPORT.write(PROTOCOL, rows)
    print_goals(EXPORT.judge(rows))


def measure_all(subject: Subject, work: Path, rows: list[Row], keep: Callable[[Row], None]) -> None:
    for scheme in subject.schemes:
        for target in TARGETS:
            if target.schemes is not None and (scheme not in target.schemes or "GPT-2" in subject.name):
                continue
            try:
                measure(subject, scheme, target, work, rows, keep)
            except UnavailableError as error:
                print(f"not measured: {subject.name} {scheme} {target.name}: {error}")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    main()
