"""Every generated table of README and docs, and docs/goals.md, from the committed results: ``python -m benchmarks.tables``.

Nothing is measured. Goals are derived anew from the rows of their results files. With ``--check`` nothing is written either:
files that would change are named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from benchmarks.common.goals import Goal, verdict
from benchmarks.common.markdown import ROOT, filled, goal_line, table
from benchmarks.common.results import kind_of, read, save
from benchmarks.decode import report as decode
from benchmarks.export import report as export
from benchmarks.gpu import report as gpu
from benchmarks.hardware import coprocessor_report as coprocessors
from benchmarks.hardware import core_report as cores
from benchmarks.hardware import report as hardware
from benchmarks.kernels import report as kernels
from benchmarks.models import report as models
from benchmarks.ptq import report as ptq
from benchmarks.qat import report as qat
from benchmarks.registry import BENCHMARKS
from benchmarks.scale import report as scale
from benchmarks.serve import report as serve
from benchmarks.trellis import report as trellis

DOCUMENTS: Mapping[str, Callable[[], dict[str, str]]] = {
    "README.md": lambda: ptq.readme() | decode.readme() | cores.readme(),
    "docs/ptq.md": ptq.document,
    "docs/qat.md": qat.document,
    "docs/kernels.md": kernels.document,
    "docs/engine.md": decode.document,
    "docs/export.md": export.document,
    "docs/gpu.md": gpu.document,
    "docs/gates.md": lambda: hardware.document() | coprocessors.document(),
    "docs/hardware.md": cores.document,
    "docs/models.md": lambda: models.document() | scale.document(),
    "docs/serve.md": serve.document,
    "docs/trellis.md": trellis.document,
}
GOALS = "docs/goals.md"
SECTIONS = {"missed": "Missed", "not measured": "Not measured", "met": "Met"}


def every_goal() -> list[tuple[str, Goal]]:
    """Results file and goal; those of a benchmark that was never run, or not on a kind of machine, are not measured."""
    found: list[tuple[str, Goal]] = []
    for benchmark in BENCHMARKS:
        files = benchmark.files()
        for path in files:
            found += [(path.name, goal) for goal in read(path)["goals"]]
        for kind in sorted(benchmark.judge_kind.keys() - {kind_of(path) for path in files}):
            found += [(f"{benchmark.name}.{kind} (never run)", goal) for goal in benchmark.goals([], kind)]
        if not files and not benchmark.judge_kind:
            found += [(f"{benchmark.name} (never run)", goal) for goal in benchmark.judge([])]
    return found


def goals_page() -> str:
    goals = every_goal()
    counts = {said: sum(verdict(goal) == said for _, goal in goals) for said in SECTIONS}
    counted = ", ".join(f"{count} {said}" for said, count in counts.items())
    parts = [
        "# Goals",
        f"Every goal of every results file in `benchmarks/results/`: {counted}. `make tables` writes this page. "
        "A goal was set by the project; an interval in brackets is its 95 % interval, over the windows (or prompts, or "
        "seeds) that were measured.",
    ]
    for said, title in SECTIONS.items():
        parts.append(f"## {title}")
        chosen = [(file, goal) for file, goal in goals if verdict(goal) == said]
        for file, group in groupby(chosen, key=lambda each: each[0]):
            parts += [f"`{file}`", table(("goal", "target", "measured", ""), [goal_line(goal) for _, goal in group])]
    return "\n\n".join(parts) + "\n"


def alike(one: object, other: object) -> bool:
    """Whether they are equal but for the last digits of floats, which differ from one torch to the next."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def stale_results(*, write: bool) -> Iterator[Path]:
    """Results files whose goals are not what their rows give; they are given them with ``write``."""
    for benchmark in BENCHMARKS:
        for path in benchmark.files():
            content = read(path)
            goals = benchmark.goals(content["rows"], kind_of(path))
            if not alike(goals, content["goals"]):
                if write:
                    save(path, content | {"goals": goals})
                yield path


def documents() -> Iterator[tuple[Path, str]]:
    """Every document, and its text as the results have it."""
    for name, tables in DOCUMENTS.items():
        yield ROOT / name, filled(ROOT / name, tables())
    yield ROOT / GOALS, goals_page()


def update(*, write: bool) -> list[Path]:
    """The files that are not as they should be; brought up to date with ``write``."""
    stale = list(stale_results(write=write))
    for path, text in documents():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if write:
                path.write_text(text, encoding="utf-8")
    return stale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything would change")
    check = parser.parse_args().check
    stale = update(write=not check)
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
    if check and stale:
        sys.exit("run make tables")


if __name__ == "__main__":
    main()
