"""The tables of docs/export.md: exact forms as the code computes them, and the measured results."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.common.goals import Row
from benchmarks.common.markdown import captioned, goals_table
from benchmarks.common.results import Content
from benchmarks.decode.goals import medians, rounds
from benchmarks.export.goals import EXPORT, MODELS, SPEED
from potq.export.targets import TARGETS
from potq.numerics.scheme import PRESETS


def forms_table() -> str:
    """A line a preset; presets that fit alike share one."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for name, scheme in PRESETS.items():
        forms = [target.form(scheme) for target in TARGETS.values()]
        cells = tuple(f"{form.name}, {form.bits_per_weight:g}" if form else "-" for form in forms)
        lines.setdefault(cells, []).append(f"`{name}`")
    head = [f"| scheme | {' | '.join(TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    return "\n".join([*head, *(f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in lines.items())])


def files_table(rows: Sequence[Row]) -> str:
    lines = ["| model | scheme | target | types | bits per weight | MB | checkpoint, MB | tensors | weights that differ |"]
    lines.append("|---|---|---|---|" + "---:|" * 5)
    for row in (row for row in rows if row["what"] == "file"):
        sizes = f"{row['bits_per_weight']:.3f} | {row['bytes'] / 1e6:.2f} | {row['checkpoint_bytes'] / 1e6:.2f}"
        names = f"{row['model']} | `{row['scheme']}` | {row['target']} | {', '.join(row['types'])}"
        lines.append(f"| {names} | {sizes} | {row['tensors']} | {row['unequal_weights']} |")
    return "\n".join(lines)


def llama_table(rows: Sequence[Row]) -> str:
    head = "| model | scheme | file | equal texts of 20 | perplexity | ours | difference | ours, inputs rounded alike "
    lines = [head + "| ours, int8 inputs | one token: error | rounded alike |"]
    lines.append("|---|---|---|" + "---:|" * 8)
    for row in (row for row in rows if row["what"] == "agreement" and "perplexity" in row):
        exact, alike, own = row["float"], row["rounded alike"], row["int8"]
        figures = f"{row['perplexity']:.3f} | {exact['perplexity']:.3f} | {exact['difference']:+.3%}"
        quantized = row["file"] == "as exported"
        rounded = f"{alike['perplexity']:.3f} ({alike['difference']:+.3%}) | {own['perplexity']:.3f}" if quantized else "|"
        names = f"{row['model']} | `{row['scheme']}` | {row['file']}"
        errors = f"{exact['one_token_error']:.0e} | " + (f"{alike['one_token_error']:.0e}" if quantized else "")
        lines.append(f"| {names} | {exact['equal_texts']} | {figures} | {rounded} | {errors} |")
    return "\n".join(lines)


def stock_table(rows: Sequence[Row]) -> str:
    lines = ["| model | scheme | dtype | logits compared | largest difference |", "|---|---|---|---:|---:|"]
    for row in (row for row in rows if "largest_difference" in row):
        figures = f"{row['dtype'].removeprefix('torch.')} | {row['logits']:,} | {row['largest_difference']:g}"
        lines.append(f"| {row['model']} | `{row['scheme']}` | {figures} |")
    return "\n".join(lines)


def onnx_table(rows: Sequence[Row]) -> str:
    lines = ["| model | scheme | at once | token by token |", "|---|---|---:|---:|"]
    for row in (row for row in rows if "at_once" in row):
        lines.append(f"| {row['model']} | `{row['scheme']}` | {row['at_once']:.1e} | {row['token_by_token']:.1e} |")
    return "\n".join(lines)


def speed_table(content: Content) -> str:
    """Medians, and the median of each round's ratio to potq's engine."""
    rows = content["rows"]
    decode, prefill = medians(rows, "decode"), medians(rows, "prefill")
    lines = ["| scheme | runs | decode, tokens/s | of potq's | prefill, tokens/s | of potq's |", "|---|---|" + "---:|" * 4]
    for name in decode:
        scheme, _, target = name.partition(": ")
        ratios = [
            median(found[name] / found[f"{scheme}: potq"] for found in rounds(rows, what)) for what in ("decode", "prefill")
        ]
        cells = f"{decode[name]:.0f} | {ratios[0]:.2f} | {prefill[name]:.0f} | {ratios[1]:.2f}"
        lines.append(f"| `{scheme}` | {target} | {cells} |")
    return "\n".join(lines)


def document() -> dict[str, str]:
    """The tables of docs/export.md."""
    found = EXPORT.read()
    rows = sorted(found["rows"], key=lambda row: MODELS.index(row["model"]))
    return {
        "forms": forms_table(),
        "files": files_table(rows),
        "llama": llama_table(rows),
        "stock": stock_table(rows),
        "onnx": onnx_table(rows),
        "speed": captioned(SPEED, speed_table),
        "goals": goals_table(found["goals"]),
    }
