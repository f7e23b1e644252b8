"""The order of imports that docs/architecture.md states: a lower layer never imports a higher one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import potq

SOURCE = Path(potq.__file__).parent
ORDER = [
    "errors",
    "validation",
    "lazy",
    "native",
    "grid",
    "effort",
    "scheme",
    "functional",
    "scale_search",
    "row_scale",
    "straight_through",
    "packing",
    "tensor",
    "kernels",
    "nn",
    "report",
    "model",
    "data",
    "calibration",
    "resume",
    "losses",
    "algorithms",
    "blocks",
    "walk",
    "estimate",
    "ptq",
    "allocation",
    "card",
    "checkpoint",
    "integrations",
    "loading",
    "text_stream",
    "generation",
    "engine",
    "evaluate",
    "qat",
    "export",
    "cli",
]


def _layer(module: str) -> int:
    return ORDER.index(module.split(".")[1])


def _imports(file: Path) -> set[str]:
    """Every potq module that ``file`` imports, inside functions and for type checking too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "potq":
            names = [f"potq.{alias.name}" for alias in node.names] if node.module == "potq" else [node.module]
            found.update(names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] == "potq")
    return found


FILES = sorted(file for file in SOURCE.rglob("*.py") if file not in (SOURCE / "__init__.py", SOURCE / "__main__.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_run_one_way(file: Path) -> None:
    own = _layer(f"potq.{file.relative_to(SOURCE).with_suffix('').parts[0]}")
    for imported in _imports(file) - {"potq"}:
        assert _layer(imported) <= own, f"{file} imports {imported}, a higher layer"


def test_algorithms_do_not_know_kernels() -> None:
    for file in (SOURCE / "algorithms").glob("*.py"):
        assert not any(name.startswith("potq.kernels") for name in _imports(file))


def test_every_layer_is_listed() -> None:
    present = {file.relative_to(SOURCE).with_suffix("").parts[0] for file in FILES}
    assert present == set(ORDER)
