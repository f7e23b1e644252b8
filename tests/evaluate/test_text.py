"""Texts: UTF-8 files and the built-in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from potq.errors import DataError
from potq.evaluate.text import read_text


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    content = "zwölf Boxkämpfer\n \n日本語 🙂\n"
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert read_text(str(tmp_path / "a.txt")) == content


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("hello")
    assert read_text("~/a.txt") == "hello"


def test_pydoc_is_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = read_text("pydoc")
    assert len(text) > 100_000
    assert text == read_text("pydoc")
    assert "statement" in text
    (tmp_path / "pydoc").write_text("a file of that name comes first")
    assert read_text("pydoc") == "a file of that name comes first"


@pytest.mark.parametrize("content", [b"", b" \n\t\n"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        read_text(str(tmp_path / "empty.txt"))


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin1\.txt is not UTF-8 \(invalid start byte at byte 2\); convert it first"):
        read_text(str(tmp_path / "latin1.txt"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the text .*none\.txt \(No such file.*\); give a file, or 'pydoc'"):
        read_text(str(tmp_path / "none.txt"))


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the text .* \(Is a directory\)"):
        read_text(str(tmp_path))


def test_the_evaluation_text_of_the_data_folder(data_dir: Path) -> None:
    assert " = Robert Boulter = " in read_text(str(data_dir / "wikitext2" / "wiki.test.raw"))
