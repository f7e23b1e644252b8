"""Firmware in emulators: the story that a board tells is the integer model's, token for token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import potq
from firmware.boards import BOARDS, Board
from firmware.build import build, run
from firmware.simulation import System
from potq.export.c import CExport
from potq.hardware import IntegerModel

from .c_program import require, require_core
from .test_model import random_model

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
SIMULATED = [name for name, board in BOARDS.items() if isinstance(board.emulator, System)]
EMULATED = [name for name in BOARDS if name not in SIMULATED]


def told(model: Any, tokenizer: Any, board: Board, folder: Path, prompt: str, count: int) -> None:
    """Build, run and compare."""
    for tool in board.tools:
        require(tool)
    if isinstance(board.emulator, System):
        require_core(board.emulator)
    CExport(model, tokenizer, core=board.core, context=64).write(folder / "program")
    elf = build(folder / "program", board, folder, defines=(f'PROMPT="{prompt}"', f"TOKENS={count}"))
    text, _, numbers = run(elf, board).rpartition("tokens:")
    integers = IntegerModel.from_packed(model, context=64)
    end = model.generation_config.eos_token_id
    expected = list(integers.generate(tokenizer(prompt)["input_ids"], count, end=[end]))
    assert list(map(int, numbers.split())) == expected
    assert text.startswith(prompt)


@pytest.mark.parametrize("name", EMULATED)
def test_an_emulated_board_tells_the_integer_models_story(
    name: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    told(random_model("llama", "pot3"), byte_tokenizer, BOARDS[name], tmp_path, "the cat", 8)


@pytest.mark.slow
@pytest.mark.skipif(not DEEP, reason="builds a simulator: make check-deep")
@pytest.mark.parametrize("name", SIMULATED)
def test_a_simulated_core_tells_the_integer_models_story(
    name: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    told(random_model("llama", "pot3"), byte_tokenizer, BOARDS[name], tmp_path, "the cat", 8)


@pytest.mark.slow
@pytest.mark.skipif(not DEEP, reason="compiles a real model: make check-deep")
@pytest.mark.parametrize(("name", "count"), [*((name, 40) for name in EMULATED), ("picorv32", 6)])
def test_a_real_story(name: str, count: int, tmp_path: Path, data_dir: Path) -> None:
    source = data_dir / "tinystories-656k"
    model = potq.load(source, potq.PoTConfig("pot3", embedding="int8"))
    told(model, potq.load_tokenizer(source), BOARDS[name], tmp_path, "Once upon a time", count)
