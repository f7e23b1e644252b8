"""Which variants are worth building: ``python -m benchmarks.hardware.frontier --work DIR [--data DIR]`` (``make gates``).

Perplexity of two models under PoT, integers and E2M1, with float16 and power-of-two scales and activations of 8 bits, and
of the smaller model also with row scales and activations of 4, against area, toggles and bytes of their circuits
(:mod:`potq.hardware.gates.frontier`). Perplexities are kept in ``--work``; a killed run goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import potq
from benchmarks.common.goals import Row
from benchmarks.hardware.gates import LAYERS
from benchmarks.hardware.goals import FRONTIER
from potq.data.text import read_text
from potq.data.tokens import tokenize
from potq.evaluate.compare import KeptRows, Protocol
from potq.hardware.gates.frontier import frontier
from potq.nn.report import Progress
from potq.numerics.scheme import QuantScheme

SCHEMES = (
    "pot2",
    "pot3",
    "pot3:scale_dtype=e8m0",
    "pot3:scale_dtype=e8m0:row_scale=true",
    "pot3s",
    "pot4",
    "pot4:group_size=32",
    "mxpot",
    "mxpot:group_size=64",
    "mxpot:row_scale=true",
    "apot4",
    "mxfp4",
    "int2",
    "int3",
    "int4",
    "int4:group_size=32:scale_dtype=e8m0",
)
WINDOWS = {"SmolLM2": (512, 4), "TinyStories": (512, 16)}
WITHOUT_ROW_SCALES = ("SmolLM2",)  # whose search is long on 135 million weights
ACTIVATION_BITS = {"SmolLM2": (8,), "TinyStories": (8, 4)}
PROTOCOL = {
    "perplexity": "GPTQ protocol: text tokenized once, non-overlapping windows, exp(total nll / predicted tokens)",
    "windows": WINDOWS,
    "weights": "round to nearest, scales of least squared error (effort fast); embedding and head in full precision",
    "activations": "rounded for each token and group of weights",
    "circuits": "OSU018; area of a 16-lane dot product, and of a scaling unit, which serves as many as a group has cycles",
    "layers": {name: layer for name, (_, _, layer) in LAYERS.items()},
}


@contextmanager
def said(label: str) -> Iterator[Progress | None]:
    print(label, flush=True)
    yield None


def measure(name: str, data: Path, work: Path) -> list[Row]:
    """The points of one model, as rows, after that of full precision."""
    source, text, layer = LAYERS[name]
    where = source if source == "smollm2" else str(data / source)
    tokens = tokenize(potq.load_tokenizer(where), read_text(str(data / text)))
    window, windows = WINDOWS[name]
    base, points = frontier(
        potq.load(where),
        Protocol(tokens, window, windows),
        [QuantScheme(scheme) for scheme in SCHEMES if name not in WITHOUT_ROW_SCALES or "row_scale" not in scheme],
        activation_bits=ACTIVATION_BITS[name],
        layer=layer,
        kept=KeptRows(work / f"frontier-{name}.json"),
        progress=said,
    )
    first = {"model": name, "scheme": base.scheme, "perplexity": base.perplexity}
    return [first, *({"model": name, **asdict(point)} for point in points)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--work", type=Path, required=True, help="folder of what a killed run has done")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    options.work.mkdir(parents=True, exist_ok=True)
    rows = FRONTIER.load(PROTOCOL)
    for name in ("TinyStories", "SmolLM2"):
        if not any(row["model"] == name for row in rows):
            rows += measure(name, Path(options.data), options.work)
            FRONTIER.write(PROTOCOL, rows)


if __name__ == "__main__":
    main()
