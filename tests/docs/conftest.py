"""What a document finds where it runs: programs on PATH, and files under the names it uses (``stand_ins.py``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import potq
from stand_ins import write_stand_ins
from warm_potq import write_client

pytest.register_assert_rewrite("document_run")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``potq`` and ``python``, this environment's."""
    folder = tmp_path_factory.mktemp("programs")
    write_program(folder / "python", f'exec "{sys.executable}" "$@"')
    if sys.platform != "linux":  # a process that has imported torch may be forked on Linux only
        write_program(folder / "potq", f'exec "{sys.executable}" -m potq "$@"')
        yield folder
        return
    address = str(folder / "socket")
    command = [sys.executable, str(Path(__file__).with_name("warm_potq.py")), address]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # so small a model only waits for threads
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=alone) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n", "the server of potq commands did not start"
        write_client(folder / "potq", address)
        yield folder
        server.terminate()


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture(scope="session")
def given_files(_tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    write_stand_ins(folder, potq.load_tokenizer(_tiny_source))
    return folder


@pytest.fixture
def document_folder(given_files: Path, tmp_path: Path) -> Path:
    """A document's folder: its own copy of the stand-ins, and nothing else."""
    return shutil.copytree(given_files, tmp_path / "document")
