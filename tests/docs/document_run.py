"""Runs the blocks of a document in order, as a reader would: one folder, one Python namespace."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from code_blocks import Block, differs, lacks

SECONDS = 300  # a block; a shell that waits for input must end


class DocumentRun:
    """A document that is being run.

    Args:
        folder: where blocks run, empty but for what the document is given.
        programs: a folder that comes first on PATH.
        not_run: commands that print why they do not run, and succeed.
    """

    def __init__(self, folder: Path, programs: Path, not_run: Mapping[str, str]) -> None:
        self.folder = folder
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
        self._prologue = "".join(
            f"{command}() {{ echo '{command} does not run here: {reason}' >&2; }}\n" for command, reason in not_run.items()
        )

    def run(self, block: Block) -> None:
        """Run ``block``, and compare what it prints with what the document says.

        Raises:
            AssertionError: it fails, or prints something else.
        """
        printed = self._python(block) if block.language == "python" else self._bash(block)
        missing = lacks(block.prints, printed)
        if not missing and block.output is not None and block.compared:
            missing = differs(block.output, printed)
        assert not missing, f"{block.place} does not print {missing!r} in its place; it printed:\n{printed}"

    def _bash(self, block: Block) -> str:
        script = self._prologue + block.text
        command = ["bash", "-euo", "pipefail", "-c", script]
        options: dict[str, Any] = {"cwd": self.folder, "env": self._environment, "stdin": subprocess.DEVNULL}
        done = subprocess.run(command, **options, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, f"{block.place} ends with status {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def _python(self, block: Block) -> str:
        code = compile("\n" * block.line + block.text, str(block.file), "exec")  # tracebacks name the document's lines
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            try:
                exec(code, self._names)
            except Exception:
                raise AssertionError(f"{block.place} fails:\n{traceback.format_exc()}") from None
        return printed.getvalue()
