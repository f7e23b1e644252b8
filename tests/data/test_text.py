"""Texts: files, datasets, and the built-in one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from potq.data import text as module
from potq.data.text import DATASETS, check_text, read_documents, read_text
from potq.errors import DataError, MissingDependencyError


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    content = "zwölf Boxkämpfer\n \n日本語 🙂\n"
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert read_text(str(tmp_path / "a.txt")) == content


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, content in (("a.txt", "hello"), ("a.jsonl", '{"text": "hello"}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert read_documents(str(tmp_path / name)) == ["hello"]


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.tsv"])
def test_tables_are_not_read_as_prose(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('[{"text": "hello"}]')
    with pytest.raises(DataError, match=rf"{name} would be read as prose.*; write it as \.jsonl"):
        read_documents(str(tmp_path / name))


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
    with pytest.raises(DataError, match=r"cannot read the text .*none\.txt \(No such file.*\); give a file, a dataset as "):
        read_text(str(tmp_path / "none.txt"))


def test_a_text_without_name() -> None:
    for source in ("", " "):
        with pytest.raises(DataError, match="the text's name is empty; give a file"):
            read_text(source)


def test_the_home_of_nobody() -> None:
    with pytest.raises(DataError, match="cannot read the text ~nobody-of-that-name/a"):
        read_text("~nobody-of-that-name/a")


# ---- documents


def test_documents_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(" one \n\n text\n")
    assert read_documents(str(tmp_path / "one.txt")) == [" one \n\n text\n"]
    (tmp_path / "many.txt").write_text("a\n<|endoftext|>\n\n b c <|endoftext|><|endoftext|> \n<|endoftext|>d")
    assert read_documents(str(tmp_path / "many.txt")) == ["a", "b c", "d"]
    assert read_text(str(tmp_path / "many.txt")) == "a\n\nb c\n\nd"


def test_nothing_but_separators(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>\n<|endoftext|>")
    with pytest.raises(DataError, match=r"a\.txt is empty"):
        read_documents(str(tmp_path / "a.txt"))


def test_documents_of_pydoc() -> None:
    documents = read_documents("pydoc")
    assert len(documents) > 50
    assert read_text("pydoc") == "\n\n".join(documents)


def test_the_texts_of_the_data_folder(data_dir: Path) -> None:
    wiki = data_dir / "wikitext2" / "wiki.test.raw"
    assert " = Robert Boulter = " in read_text(str(wiki))
    assert read_text(str(wiki)) == wiki.read_text(encoding="utf-8")
    stories = read_documents(str(data_dir / "tinystories" / "tinystories_sample_2MiB.txt"))
    assert 2300 < len(stories) < 2320


# ---- JSON lines


@pytest.fixture
def lines(tmp_path: Path) -> Any:
    """Writes lines to a file and gives its name."""

    def write(*lines: Any) -> str:
        file = tmp_path / "a.jsonl"
        content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        file.write_text(content, encoding="utf-8")
        return str(file)

    return write


def test_json_lines(lines: Any) -> None:
    rows = [{"title": "x", "text": "ein\nzwölf\u2028drei", "n": 1}, {"text": ""}, {"text": " b "}]
    assert read_documents(lines(json.dumps(rows[0], ensure_ascii=False), "", *rows[1:], " ")) == [
        "ein\nzwölf\u2028drei",
        "",
        " b ",
    ]
    assert read_documents(lines({"n": 1, "content": "a"}, {"content": "b", "title": "c"})) == ["a", "b"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", r"a\.jsonl, line 2 is not JSON \("),
        ("[" * 100_000, r"a\.jsonl, line 2 is not JSON \("),
        ("words", r"line 2 is not JSON"),
        (["a"], r"line 2 is not an object; write"),
        ("3", r"line 2 is not an object"),
        ({"content": "b"}, r"line 2 has no text under 'text'"),
        ({"text": None}, r"line 2 has no text under 'text'"),
        ({"text": 3}, r"line 2 has no text under 'text'"),
        ({"text": "\ud800"}, r"line 2 is not Unicode \(surrogates not allowed\)"),
    ],
)
def test_a_bad_line(lines: Any, second: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_documents(lines({"text": "a"}, second))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"a": "x", "b": "y"}, "several strings: 'a', 'b'"),
        ({"text": 1, "n": 2}, "no text"),
        ({}, "no text"),
    ],
)
def test_json_lines_without_a_text(lines: Any, row: Any, found: str) -> None:
    with pytest.raises(DataError, match=f'line 1 has {found}; name the field to be read "text"'):
        read_documents(lines(row))


@pytest.mark.parametrize("rows", [[], ["", " "], [{"text": ""}, {"text": " \n"}]])
def test_json_lines_that_are_empty(lines: Any, rows: list[Any]) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl is empty"):
        read_documents(lines(*rows))


def test_json_lines_that_are_missing_or_not_utf_8(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the text .*none\.jsonl"):
        read_documents(str(tmp_path / "none.jsonl"))
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match=r"a\.jsonl is not UTF-8"):
        read_documents(str(tmp_path / "a.jsonl"))


# ---- datasets

ROWS = ["", " = A = \n", "", " zwölf words \n"]


@pytest.fixture
def datasets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with a cache of its own."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    return library


def test_wikitext_rows_give_the_evaluation_string(datasets: Any, tmp_path: Path) -> None:
    """GPTQ evaluates on ``"\\n\\n".join(rows)``, empty rows included."""
    datasets.Dataset.from_dict({"text": ROWS, "n": [1, 2, 3, 4]}).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    datasets.Dataset.from_dict({"text": ["t"], "n": [1]}).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    assert read_documents(f"{tmp_path}::test") == ROWS
    assert read_text(f"{tmp_path}:default:test") == "\n\n".join(ROWS)
    assert read_documents(str(tmp_path)) == ["t"]
    assert read_documents(str(tmp_path / "test-00000-of-00001.parquet")) == ROWS


def test_a_check_reads_one_row(datasets: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"text": ["", "b", None]}).to_parquet(file)
    check_text(str(file))  # blank, as WikiText's first row is
    with pytest.raises(DataError, match="row 3 has no text"):
        read_documents(str(file))
    datasets.Dataset.from_dict({"n": [1]}).to_parquet(file)
    with pytest.raises(DataError, match="no text"):
        check_text(str(file))
    datasets.Dataset.from_dict({"text": []}).to_parquet(file)
    with pytest.raises(DataError, match="is empty"):
        check_text(str(file))


def test_the_only_column_of_strings(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"n": [1, 2], "story": ["a", "b"]}).to_parquet(tmp_path / "a.parquet")
    assert read_documents(str(tmp_path / "a.parquet")) == ["a", "b"]


def test_a_folder_of_other_files(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}')
    assert read_documents(str(tmp_path)) == ["a", "b"]


def test_datasets_saved_to_disk(datasets: Any, tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"text": ROWS})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(test=data).save_to_disk(tmp_path / "splits")
    assert read_documents(str(tmp_path / "one")) == ROWS
    assert read_documents(f"{tmp_path}/splits::test") == ROWS
    with pytest.raises(DataError, match=r"splits has no split 'train'; it has test"):
        read_documents(str(tmp_path / "splits"))


@pytest.mark.parametrize("name", ["wikitext2", "wikitext:wikitext-2-raw-v1:train", "a/b:c", "a:", "no name at all:x:y"])
def test_a_dataset_offline(datasets: Any, name: str) -> None:
    with pytest.raises(
        DataError, match=r"^the dataset .* is not here, and the hub cannot be reached \(HF_HUB_OFFLINE is set"
    ):
        read_documents(name)


@pytest.mark.parametrize("name", [":", "/none:a:b"])
def test_a_dataset_that_cannot_be_had(datasets: Any, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot load the dataset .*; write it as name:config:split; a name that is"):
        read_documents(name)


def test_the_parts_of_a_hub_name(datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load_dataset(*words: Any, **options: Any) -> list[dict[str, str]]:
        calls.append((*words, options["split"], options["streaming"]))
        return [{"text": "a"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("wikitext:raw:test", "o/name:", "o/name::validation", "o/name:c", "n:c:train[:100]"):
        assert read_documents(name) == ["a"]
    assert calls == [
        ("wikitext", "raw", "test", False),
        ("o/name", None, "train", False),
        ("o/name", None, "validation", False),
        ("o/name", "c", "train", False),
        ("n", "c", "train[:100]", False),
    ]


def test_datasets_without_text(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"a": ["x"], "b": ["y"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 1 has several strings: 'a', 'b'"):
        read_documents(str(tmp_path / "a.parquet"))
    datasets.Dataset.from_dict({"text": ["x", None]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 2 has no text under 'text'"):
        read_documents(str(tmp_path / "a.parquet"))


def test_damaged_and_empty_datasets(datasets: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot load the dataset .*doesn't contain any data files"):
        read_documents(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"cannot load the dataset .*a\.parquet \("):
        read_documents(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match="cannot load the dataset"):
        read_documents(str(tmp_path))
    datasets.Dataset.from_dict({"text": ["", " "]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet is empty"):
        read_documents(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match=r"cannot read the text .*none\.parquet"):
        read_documents(str(tmp_path / "none.parquet"))


def test_datasets_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in ("wikitext:wikitext-2-raw-v1:train", str(tmp_path)):
        with pytest.raises(MissingDependencyError, match=r"is read with the datasets library: pip install 'potq\[data\]'"):
            read_documents(source)


# ---- short names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_short_names_are_datasets(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[object, ...]] = []

    def dataset(*parts: object, **_: object) -> list[str]:
        asked.append(parts)
        return ["a text"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_dataset", dataset)
    assert read_documents(name) == ["a text"]
    source = DATASETS[name]
    dataset_name, config, split = source.split(":")
    assert asked == [(source, dataset_name, config or None, split)]
    Path(name).write_text("a file of that name comes first")
    assert read_documents(name) == ["a file of that name comes first"]
