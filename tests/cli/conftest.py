"""Fixtures of the commands' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("cli_helpers")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The cat sat on the mat; zwölf Boxkämpfer jagten ihn. " * 10)
    return file
