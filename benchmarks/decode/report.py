"""Writes the tables of ``decode/speed.py`` and ``decode/agreement.py`` into ``docs/engine.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.markdown import goals_table, put, results
from benchmarks.common.results import Row
from benchmarks.decode.goals import medians


def speed_table(rows: Sequence[Row]) -> str:
    """A line a contestant, fastest decoding first."""
    decode, prefill = medians(rows, "decode"), medians(rows, "prefill")
    quality = {row["name"]: row for row in rows if row["what"] == "perplexity"}
    lines = ["| | file, MB | decode, tokens/s | prefill, tokens/s | perplexity |", "|---|---:|---:|---:|---:|"]
    for name in sorted(prefill, key=lambda each: -decode[each]):
        file = quality.get(name, quality.get(name.replace(" native", "")))
        size, perplexity = (f"{file['file_bytes'] / 1e6:.1f}", f"{file['perplexity']:.2f}") if file else ("-", "-")
        lines.append(f"| {name} | {size} | {decode[name]:.0f} | {prefill[name]:.0f} | {perplexity} |")
    return "\n".join(lines)


def agreement_table(rows: Sequence[Row]) -> str:
    head = ("activations", "equal texts", "equal tokens", "error of logits, mean", "largest", "perplexity", "the modules'")
    lines = [f"| {' | '.join(head)} | the modules with themselves |", "|---" + "|---:" * len(head) + "|"]
    for row in rows:
        errors = f"{row['mean_error']:.1e} | {row['largest_error']:.1e}"
        perplexities = f"{row['perplexity']:.3f} | {row['modules_perplexity']:.3f}"
        own = row["modules_with_themselves"]["equal_texts"]
        shares = f"{row['equal_texts']:.0%} | {row['equal_tokens']:.2%}"
        lines.append(f"| {row['activations']} | {shares} | {errors} | {perplexities} | {own:.0%} |")
    return "\n".join(lines)


def main() -> None:
    decode, agreement = results("decode"), results("engine_agreement")
    goals = goals_table([*agreement["goals"], *decode["goals"]])
    tables = {"agreement": agreement_table(agreement["rows"]), "speed": speed_table(decode["rows"]), "goals": goals}
    put("engine", tables)


if __name__ == "__main__":
    main()
