"""The command line as tests run it: in this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from potq.cli.app import app
from potq.errors import PotqError


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def succeed(*words: str | Path) -> str:
    """What a command that succeeds prints on stdout."""
    result = invoke(*words)
    assert result.exit_code == 0, result.exception
    return str(result.stdout)


def refused(kind: type[PotqError], *words: str | Path) -> str:
    """The message of the error, which must be of class ``kind``; nothing may be on stdout."""
    result = invoke(*words)
    assert isinstance(result.exception, kind), result.exception
    assert result.stdout == ""
    return str(result.exception)
