"""Every public name has an example in its docstring, and it is right. Examples read two folders, ``tiny`` and ``packed``."""

from __future__ import annotations

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potq.kernels import registry

FACES = ("potq", "potq.hardware", "potq.kernels", "potq.qat")


def _statements(module: str) -> Iterator[ast.stmt]:
    """The statements of a module, those under ``if TYPE_CHECKING`` too."""
    file = importlib.import_module(module).__file__
    assert file is not None
    for statement in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        yield from statement.body if isinstance(statement, ast.If) else [statement]


def _homes(face: str) -> dict[str, str]:
    """The module that each public name of ``face`` comes from."""
    imports = [node for node in _statements(face) if isinstance(node, ast.ImportFrom) and node.module]
    found = {alias.name: str(node.module) for node in imports for alias in node.names}
    return {name: found[name] for name in importlib.import_module(face).__all__}


def _docstring(module: str, name: str) -> str:
    """Of a class, a function, or a variable, whose docstring is the text behind its assignment."""
    statements = list(_statements(module))
    for place, statement in enumerate(statements):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == name:
            return ast.get_docstring(statement) or ""
        if isinstance(statement, ast.Assign | ast.AnnAssign) and name in _assigned(statement):
            following = getattr(statements[place + 1], "value", None)
            return str(following.value) if isinstance(following, ast.Constant) else ""
    raise LookupError(f"{module} defines no {name}")


def _assigned(statement: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [ast.unparse(target) for target in targets]


NAMES = [(face, name, home) for face in FACES for name, home in _homes(face).items()]


@pytest.fixture
def own_backends() -> Iterator[None]:
    """An example may register a backend; the next test has those of before."""
    before = dict(registry.BACKENDS)
    yield
    registry.BACKENDS.clear()
    registry.BACKENDS.update(before)
    registry.choose.cache_clear()


@pytest.mark.parametrize(("face", "name", "home"), NAMES, ids=[f"{face}.{name}" for face, name, _ in NAMES])
@pytest.mark.usefixtures("tiny_folder", "packed_folder", "own_backends", "one_thread")
def test_the_example_is_right(face: str, name: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(_docstring(home, name), {}, f"{face}.{name}", home, 0)
    assert test.examples, f"{face}.{name} has no example in its docstring"
    output: list[Any] = []
    results = doctest.DocTestRunner(verbose=False).run(test, out=output.append)
    assert results.failed == 0, "".join(output)
