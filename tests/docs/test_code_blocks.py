"""The code blocks of README and docs run in order, each document in a folder of its own.

``code_blocks.py`` has the tags by which a document keeps a block from running, ``conftest.py`` the files that stand in for
models and texts. Documents that begin in the middle are given what they take for granted by :data:`BEFORE`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from code_blocks import Block, read_blocks
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
    "torchrun": "its lines are for several GPUs and machines; the tests of potq.qat run two processes",
    "accelerate": "its lines are for several GPUs; the tests of potq.qat run two processes",
}

# shell and Python that ran before a document's first block, as it takes for granted
BEFORE = {
    "docs/engine.md": (
        "potq quantize smollm2 out",
        "import potq\nids = [504, 3575, 282]",
    ),
    "docs/kernels.md": ("", "import potq\nmodel = potq.load('smollm2', potq.PoTConfig('pot4'))"),
    "docs/qat.md": ("cp recipes/smollm2.yaml recipe.yaml", ""),
}


@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if any(not block.tag for block in blocks)])
@pytest.mark.usefixtures("one_thread")
def test_blocks_run(name: str, document_folder: Path, programs: Path) -> None:
    run = DocumentRun(document_folder, programs, NOT_RUN)
    for language, text in zip(("bash", "python"), BEFORE.get(name, ("", "")), strict=True):
        run.run(Block(Path(f"before {name}"), 0, language, text))
    for block in BLOCKS[name]:
        if not block.tag:
            run.run(block)


def test_what_ran_before_is_for_documents_that_are_there() -> None:
    assert set(BEFORE) <= {name for name, blocks in BLOCKS.items() if blocks}


@pytest.mark.slow
@pytest.mark.skipif(not DEEP, reason="takes minutes: make check-deep")
@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if any(block.tag == "slow" for block in blocks)])
def test_slow_blocks_run_with_the_real_model(name: str, document_folder: Path, programs: Path) -> None:
    shutil.rmtree(document_folder / "smollm2")
    run = DocumentRun(document_folder, programs, NOT_RUN)
    for block in BLOCKS[name]:
        if block.tag == "slow":
            run.run(block)
