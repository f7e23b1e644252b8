"""The code blocks of README and docs run in order, each document in a folder of its own.

``code_blocks.py`` has the tags by which a document keeps a block from running, ``conftest.py`` the files that stand in for
models and texts.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from code_blocks import read_blocks
from document_run import DocumentRun

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {file.relative_to(ROOT).as_posix(): read_blocks(file) for file in DOCUMENTS}
DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"

NOT_RUN = {
    "make": "its targets set up an environment and run these tests",
    "pip": "it would change the environment that the tests run in",
    "git": "it needs the network",
    "llama-cli": "a program of llama.cpp",
    "torchrun": "its lines are for several GPUs and machines; the tests of potq.qat and potq.ptq run two processes",
    "accelerate": "its lines are for several GPUs; the tests of potq.qat run two processes",
}


@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if any(not block.tag for block in blocks)])
@pytest.mark.usefixtures("one_thread")
def test_blocks_run(name: str, document_folder: Path, programs: Path) -> None:
    run = DocumentRun(document_folder, programs, NOT_RUN)
    for block in BLOCKS[name]:
        if not block.tag:
            run.run(block)


@pytest.mark.slow
@pytest.mark.skipif(not DEEP, reason="takes minutes: make check-deep")
@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if any(block.tag == "slow" for block in blocks)])
def test_slow_blocks_run_with_the_real_model(name: str, document_folder: Path, programs: Path) -> None:
    shutil.rmtree(document_folder / "smollm2")
    run = DocumentRun(document_folder, programs, NOT_RUN)
    for block in BLOCKS[name]:
        if block.tag == "slow":
            run.run(block)
