"""Results of the benchmark scripts: one ``benchmarks/results/NAME.json`` per script, written whole or not at all.

A file holds ``machine``, ``versions``, ``protocol`` (what was measured and how), ``rows`` (raw figures) and ``goals``.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

RESULTS = Path(__file__).resolve().parents[1] / "results"
PACKAGES = ("potq", "torch", "transformers", "numpy")

Row = dict[str, Any]
Protocol = dict[str, Any] | str


class Goal(TypedDict):
    """A figure the project set itself, and what came out; where it matters its 95 % interval, and the rows it is from."""

    name: str
    target: str | float
    measured: float | None
    met: bool
    interval: NotRequired[list[float]]
    rows: NotRequired[list[str]]


def write_results(
    name: str, protocol: Protocol, rows: Sequence[Row], goals: Sequence[Goal] = (), packages: Sequence[str] = ()
) -> Path:
    """Write ``results/name.json`` atomically and return its path. ``packages`` are further ones whose versions matter."""
    content = {
        "machine": machine(),
        "versions": {package: _version(package) for package in (*PACKAGES, *packages)},
        "protocol": protocol,
        "rows": list(rows),
        "goals": list(goals),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def at_least(name: str, target: float, measured: float | None) -> Goal:
    """The goal that ``name`` is ``target`` or more; None is not measured yet, and not met."""
    met = measured is not None and measured >= target
    return {"name": f"{name}, at least", "target": target, "measured": measured, "met": met}


def at_most(name: str, target: float, measured: float | None) -> Goal:
    """The same, ``target`` or less."""
    met = measured is not None and measured <= target
    return {"name": f"{name}, at most", "target": target, "measured": measured, "met": met}


def print_goals(goals: Sequence[Goal]) -> None:
    """One line per goal: met or missed, measured, target."""
    for goal in goals:
        measured = f"{goal['measured']:.4g}" if goal["measured"] is not None else "not measured"
        print(f"{'met   ' if goal['met'] else 'MISSED'} {goal['name']}: {measured} (target {goal['target']})")


def load_rows(name: str, protocol: Protocol) -> list[Row]:
    """Rows of an earlier run under an equal ``protocol``, else []. Put into it whatever would make old rows invalid."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    same = content.get("protocol") == json.loads(json.dumps(protocol))  # as JSON: a tuple equals a list
    return list(content["rows"]) if same else []


def machine() -> dict[str, Any]:
    """What the figures were measured on; ``memory_gib`` is None where the OS does not tell."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1) if memory else None,
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(package: str) -> str:
    """Installed version; a package that runs from its source tree (or is absent) has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "source" if package == "potq" else "absent"
