"""Results of the benchmark scripts: one JSON file per script, and per kind of machine where speed is measured.

A file holds ``machine``, ``versions``, ``protocol`` (what was measured and how), ``rows`` (raw figures) and ``goals``. It is
written whole or not at all. ``decode.avx2.json`` has the rows of ``decode`` on a CPU whose best instruction set is AVX2, or
on one that was held to it (``POTQ_CPU_ISA=avx2``), which ``machine`` then tells.

``POTQ_SPEED_RESULTS`` may name another folder for what times something, such as a second machine of a kind.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from benchmarks.common.goals import Goal, Judge, Row
from benchmarks.forced import forced
from potq import native
from potq.evaluate.perplexity import Perplexity

RESULTS = Path(__file__).resolve().parents[1] / "results"
PACKAGES = ("potq", "torch", "transformers", "numpy")
ISAS = {
    "avx512vnni": "AVX-512 VNNI",
    "avxvnni": "AVX-VNNI",
    "avx2": "AVX2",
    "neoni8mm": "Arm NEON with matrix products",
    "neondot": "Arm NEON with dot products",
    "neon": "Arm NEON",
}
"""How documents call the kinds of CPUs."""

Protocol = Mapping[str, Any] | str
Content = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One script's results: their name, and the goals that their rows are judged by.

    Attributes:
        judge: goals from rows, on every machine.
        timed: what speed is measured of, if it is: there is one file for each kind of it then.
        packages: further ones whose versions matter.
        judge_kind: further goals, by the kind of machine that they are for.
    """

    name: str
    judge: Judge
    timed: Literal["", "cpu", "gpu"] = ""
    packages: tuple[str, ...] = ()
    judge_kind: Mapping[str, Judge] = field(default_factory=dict, hash=False)

    def goals(self, rows: Sequence[Row], kind: str) -> list[Goal]:
        """Goals from the rows of a file of this kind of machine."""
        further = self.judge_kind.get(kind)
        return [*self.judge(rows), *(further(rows) if further else [])]

    def file(self) -> Path:
        """Where results of this machine are."""
        return self.folder() / (f"{self.name}.{_kind(self.timed)}.json" if self.timed else f"{self.name}.json")

    def files(self) -> list[Path]:
        """Every file there is, one for each kind of machine where speed is measured."""
        return sorted(self.folder().glob(f"{self.name}.*.json" if self.timed else f"{self.name}.json"))

    def folder(self) -> Path:
        chosen = os.environ.get("POTQ_SPEED_RESULTS") if self.timed else None
        return Path(chosen) if chosen else RESULTS

    def picture(self) -> Path:
        return self.file().with_suffix(".png")

    def read(self) -> Content:
        """The only file of a benchmark that times nothing."""
        return read(RESULTS / f"{self.name}.json")

    def by_kind(self) -> dict[str, Content]:
        """The files of a benchmark that measures speed, by kind of machine, the newest instruction set first."""
        found = {kind_of(path): read(path) for path in self.files()}
        return dict(sorted(found.items(), key=lambda item: [*ISAS, item[0]].index(item[0])))

    def load(self, protocol: Protocol) -> list[Row]:
        """Rows of an earlier run under an equal ``protocol``, else []. Put into it whatever would make old rows invalid.

        Raises:
            SystemExit: speed was measured on another machine.
        """
        if not self.file().exists():
            return []
        content = read(self.file())
        self._refuse_others(content["machine"])
        same = content["protocol"] == json.loads(json.dumps(protocol))  # as JSON: a tuple equals a list
        return list(content["rows"]) if same else []

    def write(self, protocol: Protocol, rows: Sequence[Row]) -> list[Goal]:
        """Write this machine's file, with the goals that come out of ``rows``, which are returned.

        Raises:
            SystemExit: the file has speeds of another machine.
        """
        path = self.file()
        goals = self.goals(rows, kind_of(path))
        if path.exists():
            self._refuse_others(read(path)["machine"])
        versions = {package: _version(package) for package in (*PACKAGES, *self.packages)}
        content = {"machine": machine(self.timed), "versions": versions, "protocol": protocol}
        save(path, content | {"rows": list(rows), "goals": goals})
        return goals

    def elsewhere(self, recorded: Mapping[str, Any]) -> bool:
        """Whether the machine that a file records is not this one, so that speeds are not to be compared."""
        here = machine(self.timed)
        same = [key for key in _SAME if key != "cpu_id" or key in recorded]  # files of before have none
        return bool(self.timed) and any(recorded.get(key) != here.get(key) for key in same)

    def _refuse_others(self, recorded: Mapping[str, Any]) -> None:
        if self.elsewhere(recorded):
            raise SystemExit(
                f"{self.file()} was measured on another machine. Its machine: {described(recorded)}. This machine: "
                f"{described(machine(self.timed))}. Speeds of two machines are not mixed. Write to another folder with "
                "POTQ_SPEED_RESULTS=FOLDER, or remove the file to measure this machine instead."
            )


_SAME = ("cpu", "cpu_id", "cores", "isa", "forced_on", "gpu")


def described(machine: Mapping[str, Any]) -> str:
    """What makes two machines two, in words."""
    cpu = machine["cpu"] + (f" ({machine['cpu_id']})" if machine.get("cpu_id") else "")
    words = [cpu, f"{machine['cores']} cores", instruction_set(machine)]
    return ", ".join([*words, machine["gpu"]] if "gpu" in machine else words)


def cpu_name(machine: Mapping[str, Any]) -> str:
    """With what tells CPUs of one name apart, where it is known: virtual machines name a CPU by its make alone."""
    cpu, known = str(machine["cpu"]), str(machine.get("cpu_id") or "").split()
    return f"{cpu} family {known[1]} model {known[2]}" if len(known) > 2 else cpu


def instruction_set(machine: Mapping[str, Any]) -> str:
    """In words; where it was forced, on what."""
    isa, *best = (ISAS.get(machine[key], machine[key]) for key in ("isa", "forced_on") if key in machine)
    return f"{isa} forced on {best[0]}" if best else str(isa)


def kind_of(path: Path) -> str:
    """The kind of machine in the name of a results file that has one."""
    return path.name.split(".")[-2]


def read(path: Path) -> Content:
    content: Content = json.loads(path.read_text(encoding="utf-8"))
    return content


def save(path: Path, content: Content) -> None:
    """Write atomically: a line for each row and goal."""
    parts = []
    for key, value in content.items():
        listed = isinstance(value, list) and value
        lines = ",\n".join(f"  {json.dumps(each, allow_nan=False)}" for each in value) if listed else ""
        parts.append(f' "{key}": [\n{lines}\n ]' if listed else f' "{key}": {json.dumps(value, allow_nan=False)}')
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    os.replace(temporary, path)


def summary(found: Perplexity) -> Row:
    """A perplexity without its windows: only where an interval is computed from them are they kept."""
    row = found.to_dict()
    del row["window_nll"]
    return row


def machine(timed: str = "") -> dict[str, Any]:
    """What the figures were measured on; ``memory_gib`` is None where the OS does not tell.

    ``cpu_id`` tells CPUs apart that virtual machines give one name; None where the OS does not tell. ``forced_on`` is there
    where ``isa`` was forced: the best instruction set of this CPU.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    found = {
        "cpu": next(iter(_cpu_lines("model name")), platform.processor() or platform.machine()),
        "cpu_id": " ".join(next(iter(_cpu_lines(key)), "") for key in _CPU_ID).strip() or None,
        "cores": os.cpu_count(),
        "isa": _isa(),
        "memory_gib": round(memory, 1) if memory else None,
        "os": platform.platform(),
        "python": platform.python_version(),
    }
    if timed == "cpu" and forced():
        found["forced_on"] = native.best_isa()
    return found | {"gpu": _gpu()} if timed == "gpu" else found


def _kind(timed: str) -> str:
    """Of this machine, as part of a file's name.

    Raises:
        SystemExit: the kernels were told to use less than the CPU has, and their rivals cannot be held to it.
    """
    if timed == "gpu":
        return re.sub(r"\W+", "-", _gpu()).strip("-").lower()
    return forced() or _isa()


def _isa() -> str:
    return "reference" if native.missing() else native.isa()


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


_CPU_ID = ("vendor_id", "cpu family", "model", "stepping")


def _cpu_lines(key: str) -> list[str]:
    """What Linux says of every core under ``key``."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key]


def _version(package: str) -> str:
    """Installed version; a package that runs from its source tree (or is absent) has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "source" if package == "potq" else "absent"
