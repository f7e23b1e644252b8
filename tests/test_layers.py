"""The order of imports that docs/architecture.md states: a lower room never imports a higher one; no circles."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import potq

SOURCE = Path(potq.__file__).parent
ORDER = [
    "errors",
    "validation",
    "version",
    "native",
    "files",
    "resume",
    "numerics",
    "config",
    "kernels",
    "nn",
    "data",
    "ptq",
    "checkpoint",
    "engine",
    "evaluate",
    "qat",
    "hardware",
    "export",
    "serve",
    "cli",
]
FACE = ("__init__", "__main__")  # what users import; nothing inside does
FILES = {
    ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts): file
    for file in sorted(SOURCE.rglob("*.py"))
    if file.parent != SOURCE or file.stem not in FACE
}


def _module(name: str) -> str:
    """The file behind a dotted name: a package is its ``__init__``, and a name in a module is that module's."""
    for candidate in (name, f"{name}.__init__", name.rpartition(".")[0], f"{name.rpartition('.')[0]}.__init__"):
        if candidate in FILES:
            return candidate
    return "potq"


def _imports(file: Path) -> set[str]:
    """Every module of potq that ``file`` imports, inside functions and for type checking too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "potq":
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] == "potq")
    return {_module(name) for name in found}


IMPORTS = {name: _imports(file) for name, file in FILES.items()}


def _floor(module: str) -> int:
    return ORDER.index(module.split(".")[1])


@pytest.mark.parametrize("name", FILES)
def test_imports_run_one_way(name: str) -> None:
    for imported in IMPORTS[name] - {"potq"}:
        assert _floor(imported) <= _floor(name), f"{name} imports {imported}, which stands higher"


@pytest.mark.parametrize("name", FILES)
def test_nothing_inside_imports_the_face(name: str) -> None:
    assert "potq" not in IMPORTS[name], f"{name} imports potq itself; import from the module that has the name"


def test_no_circles() -> None:
    order = list(TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names the files
    assert set(order) == set(FILES)


def test_algorithms_do_not_know_kernels() -> None:
    algorithms = [name for name in FILES if name.startswith("potq.ptq.algorithms.")]
    assert algorithms
    assert not [name for name in algorithms if any(imported.startswith("potq.kernels") for imported in IMPORTS[name])]


def test_every_room_is_listed() -> None:
    assert {name.split(".")[1] for name in FILES} == set(ORDER)


def test_the_picture_shows_the_floors() -> None:
    picture = (Path(__file__).parents[1] / "docs" / "pictures" / "stages.svg").read_text(encoding="utf-8")
    from_above = re.findall(r'class="room"[^>]*>(\w+)<', picture)
    rooms = ORDER[ORDER.index("numerics") :]
    assert from_above == rooms[::-1] + ORDER[: -len(rooms)]  # the modules of the root share the lowest floor


def test_the_root_stays_small() -> None:
    assert len(list(SOURCE.glob("*.py"))) <= 9
    assert len(ORDER) <= 20
