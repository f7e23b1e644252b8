"""Perplexities of the files that ``decode/speed.py`` times, for tables and pictures; no machine changes them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.common.goals import Row
from benchmarks.decode.goals import FILES
from benchmarks.ptq.goals import RTN_TABLE, SMOLLM2
from benchmarks.ptq.settings import FULL


@dataclass(frozen=True)
class Quality:
    """Of one contestant. ``rounded`` is of the very file that was timed, ``calibrated`` of one as large and as fast."""

    rounded: float | None = None
    calibrated: float | None = None
    file_bytes: int | None = None


def quality(name: str) -> Quality:
    """Of the contestant ``name``; llama.cpp's native build and ik_llama.cpp run the same files as the packaged one."""
    rows = [row for row in FILES.read()["rows"] if row["name"] == name.replace(" native", "").removeprefix("ik_")]
    found = {bool(row["calibrated"]): row["perplexity"] for row in rows}
    size = next((row["file_bytes"] for row in rows), None)
    return Quality(found.get(False, _rounded(name)), found.get(True), size)


def _rounded(name: str) -> float | None:
    """From ``rtn_table``, which rounds the same model as a whole on the same windows; and full precision's."""
    scheme = FULL if name.endswith(" float32") else name.removeprefix("potq ")
    embedding = FULL if scheme == FULL else "same"
    rows: list[Row] = RTN_TABLE.read()["rows"]
    key = {"model": SMOLLM2, "scheme": scheme, "embedding": embedding}
    return next((row["perplexity"] for row in rows if key.items() <= row.items()), None)
