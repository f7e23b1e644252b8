"""The tables of docs/models.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from benchmarks.common.goals import Row
from benchmarks.common.markdown import table
from benchmarks.models.goals import FULL, MIXTRAL, TABLE

HEADINGS = (
    *("model", "quantized", "experts", "bits", "`balanced`", "saved and loaded", "packed while it loads", "runs on"),
    *("LoRA", "GGUF", "in full precision"),
)
_SHOWN = 0.0005  # of the model: less than that is not named


class Notes:
    """Reasons, each once, by number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"({self.texts.index(text) + 1})"

    def listed(self) -> str:
        return "\n".join(f"{number}. {_escaped(text)}" for number, text in enumerate(self.texts, 1))


def document() -> dict[str, str]:
    rows, notes = TABLE.read()["rows"], Notes()
    kinds = dict.fromkeys(row["kind"] for row in rows)
    parts = [_kind(kind, [row for row in rows if row["kind"] == kind], notes) for kind in kinds]
    counted = f"{len(rows)} architectures, transformers {TABLE.read()['versions']['transformers']}."
    return {"models": "\n\n".join([counted, *parts]), "reasons": notes.listed(), "mixtral": mixtral()}


def _kind(kind: str, rows: Sequence[Row], notes: Notes) -> str:
    lines = [line(row, notes) for row in rows]
    used = [i for i in range(len(HEADINGS)) if any(cells[i] not in ("", "-") for cells in lines)]
    shown = [[cells[i] for i in used] for cells in lines]
    return f"### {kind[0].upper()}{kind[1:]}\n\n{table([HEADINGS[i] for i in used], shown)}"


def line(row: Row, notes: Notes) -> list[str]:
    """The cells of an architecture."""
    name = f"{row['name']}: `{row['class']}`" if "," in row["name"] else row["name"]
    fast = row["fast"].get("done")
    if fast is None:
        return [name, _failed(row, row["fast"], notes), *[""] * (len(HEADINGS) - 2)]

    def cell(key: str) -> str:
        found = row.get(key)
        return "-" if found is None else "yes" if "done" in found else _failed(row, found, notes)

    experts = "-" if fast["experts"] is None else _percent(fast["experts"])
    figures = [_percent(fast["quantized"]), experts, f"{fast['bits']:.2f}"]
    tried = [_balanced(row, notes), cell("saved"), cell("streamed"), _runs_on(row, notes), cell("lora"), cell("gguf")]
    return [name, *figures, *tried, _left(fast["left"])]


def _failed(row: Row, found: dict[str, Any], notes: Notes) -> str:
    ((how, said),) = found.items()
    said = re.sub(r"^\S+ (?=is a stack of experts)", "it ", said)
    said = re.sub(rf"'?\b{re.escape(row['name'])}\b'?", "this", said)
    said = re.sub(rf"\b{re.escape(row.get('class') or row['name'])}\b", "this model", said)
    words = {"refused": "no", "wrong": "**wrong**", "raw": "**error**"}
    return f"{words[how]} {notes.mark(said)}"


def _balanced(row: Row, notes: Notes) -> str:
    """Yes, and how much of the matrices within blocks was rounded to nearest all the same, and why."""
    found = row["balanced"]
    if "done" not in found:
        return _failed(row, found, notes)
    weights = {label: count for label, count in found["done"]["weights"].items() if label != "embedding or head"}
    rounded = {label: count for label, count in weights.items() if label.startswith("rtn")}
    experts = [label for label in weights if "(experts" in label]
    few = f", some experts {notes.mark('rounded to nearest: experts that no text reaches')}" if experts else ""
    if not rounded:
        return f"yes{few}"
    share = sum(rounded.values()) / sum(weights.values())
    reasons = (label.partition("(")[2].rstrip(")") or "it is outside the blocks" for label in rounded)
    marks = " ".join(notes.mark(f"rounded to nearest: {reason}") for reason in reasons)
    return f"yes, but {_percent(share)} {marks}{few}"


def _runs_on(row: Row, notes: Notes) -> str:
    generated = row.get("generated", {"done": 0})
    if "done" not in generated:
        return _failed(row, generated, notes)
    return "engine" if row.get("engine", {}).get("done") == "engine" else "modules"


def _left(skipped: Sequence[tuple[str, str, float]]) -> str:
    """What is in full precision, by its kind, with its share of the model."""
    shares: dict[str, float] = {}
    for _, reason, share in skipped:
        kind = re.sub(r" with a \S+ weight is not supported$", "", reason).partition(";")[0]
        kind = kind.replace("it chooses experts", "routers")
        shares[kind] = shares.get(kind, 0.0) + share
    return ", ".join(f"{kind} {_percent(share)}" for kind, share in shares.items() if share >= _SHOWN)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _escaped(text: str) -> str:
    return re.sub(r"([<>*|])", r"\\\1", text)


def mixtral() -> str:
    """The small Mixtral's perplexities."""
    lines = []
    for row in MIXTRAL.read()["rows"]:
        of = row["scheme"] == FULL
        figures = (
            ("32", "-", "-")
            if of
            else (f"{row['bits_per_weight']:.2f}", _percent(row["quantized"]), _percent(row["experts"]))
        )
        lines.append([row["scheme"] if of else f"`{row['scheme']}`", row["effort"], *figures, f"{row['perplexity']:.4f}"])
    headings = ("scheme", "effort", "bits of the model", "quantized", "of the experts", "perplexity a character")
    return table(headings, lines)
