"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from potq.errors import CheckpointError
from potq.export.output import check_file, replacing_file


def test_the_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    with replacing_file(target, 3) as partial:
        partial.write_text("all")
        assert not target.exists()
    assert target.read_text() == "all"
    assert os.listdir(target.parent) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_one_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("before")

    def stop(partial: Path) -> None:
        partial.write_text("half")
        raise error

    with pytest.raises(error), replacing_file(target, 4) as partial:
        stop(partial)
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing was changed"), replacing_file(tmp_path / "file", 0):
        pass


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(CheckpointError, match="link exists"):
        check_file(tmp_path / "link", suffix="", force=False)
    assert check_file(tmp_path / "link", suffix="", force=True) == (tmp_path / "file").resolve()
