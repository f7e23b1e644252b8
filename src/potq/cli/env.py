"""``potq env``: what potq runs on, for bug reports."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from potq.cli import console
from potq.errors import ConfigError
from potq.version import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "gguf", "pydantic")
_NOT_FOR_USERS = ("dev", "docs", "pytest", "test")
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and that of WSL


def env(as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False) -> None:
    """Show versions, the CPU, the compiled library, threads, GPUs and optional extras, and what is missing.

    potq env
    """
    from potq.engine.threads import default_threads

    found = {
        "potq": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": _cpu(),
        "library": _library(),
        "threads": default_threads(),
        "gpu": _gpu(),
        "extras": _extras(),
    }
    if as_json:
        console.emit_json(found)
        return
    for line in _lines(found):
        print(line)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _library() -> dict[str, Any]:
    """Where the compiled library is, and what it makes of this CPU; or why it cannot be used."""
    from potq import native

    place = {"path": str(native.path()) if native.path() is not None else None, "missing": native.missing()}
    if native.missing() is not None:
        return place
    try:
        used: str = native.isa()
    except ConfigError as error:  # of POTQ_CPU_ISA
        used = str(error)
    return {**place, "openmp": native.library().potq_has_openmp() == 1, "isas": list(native.usable_isas()), "isa": used}


def _gpu() -> str | None:
    """Names of GPUs. Only where there is a driver torch is asked, whose import takes seconds."""
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return None
    import torch

    if not torch.cuda.is_available():
        return f"there is a driver, but torch {torch.__version__} finds no GPU"
    return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def _extras() -> dict[str, dict[str, str | None]]:
    """The version of every package of every extra, None where it is missing."""
    from packaging.requirements import Requirement

    extras: dict[str, dict[str, str | None]] = {}
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("potq") or ()]
        names = importlib.metadata.metadata("potq").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:  # it runs from its source
        return extras
    for name in sorted(set(names) - set(_NOT_FOR_USERS)):
        wanted = partial(_is_wanted, extra=name)
        extras[name] = {requirement.name: _version(requirement.name) for requirement in filter(wanted, requirements)}
    return extras


def _is_wanted(requirement: Any, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _lines(found: dict[str, Any]) -> list[str]:
    """For people: a line a fact, and what to do about what is missing."""
    packages = ", ".join(f"{name} {version or 'MISSING'}" for name, version in found["packages"].items())
    library = found["library"]
    if library["missing"] is not None:
        compiled = [f"library: {library['missing']}"]
    else:
        with_openmp = "with OpenMP" if library["openmp"] else "WITHOUT OpenMP, so on one thread"
        isas = f"instruction sets: {', '.join(library['isas'])}; in use: {library['isa']}"
        compiled = [f"library: {library['path']}, {with_openmp}", isas]
    extras = [f"extra {name}: {_packages(name, versions)}" for name, versions in found["extras"].items()]
    return [
        f"potq {found['potq']}, Python {found['python']}, {found['platform']}",
        packages,
        f"CPU: {found['cpu']}",
        *compiled,
        f"threads: {found['threads']}",
        f"GPU: {found['gpu'] or 'none'}",
        *extras,
    ]


def _packages(extra: str, versions: dict[str, str | None]) -> str:
    if None in versions.values():
        lacking = ", ".join(name for name, version in versions.items() if version is None)
        return f"{lacking} missing; pip install 'potq[{extra}]'"
    return ", ".join(f"{name} {version}" for name, version in versions.items())
