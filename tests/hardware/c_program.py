"""Generated C, built for this machine with every warning and sanitizer, and run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from firmware.simulation import System

WARNINGS = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
DRIVER = Path(__file__).with_name("driver.c")


def require(tool: str) -> str:
    """The path of a program; without it the test is skipped, and says so."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found


def require_core(system: System) -> None:
    """Skip a test whose simulated core has no Verilog here, and say so."""
    if not system.is_installed:
        pytest.skip(f"pip install {system.package}")


class Built:
    """A program with the driver of the tests."""

    def __init__(self, folder: Path, *options: str, compiler: str = "gcc") -> None:
        files = [file for file in sorted(folder.glob("*.c")) if file.name != "main.c"]
        self._path = folder / "driver"
        command = [require(compiler), *WARNINGS, *(options or SANITIZERS), f"-I{folder}", DRIVER, *files, "-o", self._path]
        subprocess.run(list(map(str, command)), check=True)

    def ask(self, *lines: str) -> list[str]:
        """The driver's answer to every line."""
        found = subprocess.run([self._path], input="\n".join(lines) + "\n", capture_output=True, text=True, check=True)
        assert found.stderr == ""
        return found.stdout.splitlines()

    def numbers(self, *lines: str) -> list[list[int]]:
        return [list(map(int, answer.split())) for answer in self.ask(*lines)]

    def logits(self, tokens: Sequence[int]) -> list[list[int]]:
        return self.numbers("f " + " ".join(map(str, tokens)))

    def product(self, matrix: int, inputs: Sequence[int]) -> list[int]:
        """Of one of the first block's: query, key, value, output, up, down; or of the head, 6."""
        return self.numbers(f"m {matrix} " + " ".join(map(str, inputs)))[0]

    def encode(self, *texts: str) -> list[list[int]]:
        """Tokens of every text; their number comes first."""
        return self.numbers(*(f"e {text.encode().hex()}" for text in texts))
