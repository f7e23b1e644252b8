"""Text from wherever it is: files, datasets, or what every Python installation has."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from potq.errors import DataError, MissingDependencyError, out_of_reach

SELF = "self"  # text that the model writes, where a command takes it
BUILT_IN = "pydoc"
SEPARATOR = "<|endoftext|>"
_TABLES = (".json", ".csv", ".tsv", ".xml", ".html", ".pdf", ".docx")  # not plain text
DATASETS = {
    "wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1:test",
    "tinystories": "roneneldan/TinyStories::validation",
}
"""Short names of datasets that perplexity is usually measured on."""
_FORMS = f"give a file, a dataset as name:config:split, {', '.join(DATASETS)}, or {BUILT_IN!r}"


def read_text(source: str) -> str:
    """All of :func:`read_documents` as one text, joined by blank lines (as GPTQ's evaluation joins WikiText's rows).

    Raises:
        DataError, MissingDependencyError: see :func:`read_documents`.
    """
    return "\n\n".join(read_documents(source))


def read_documents(source: str) -> list[str]:
    """The documents of ``source``, which is one of:

    * a UTF-8 text file: one document, as it is, or several (stripped) if ``<|endoftext|>`` stands between them;
    * a ``.jsonl`` file: a document a line, under the key "text" or the only one whose value is a string;
    * a ``.parquet`` file, or a folder that the ``datasets`` library can load (``folder:config:split`` chooses);
    * a dataset of the Hugging Face hub, ``name:config:split`` (the config may be empty, the split is "train" by default).
      All of it is downloaded, and kept where ``datasets`` keeps it;
    * ``"wikitext2"`` or ``"tinystories"``: the test split of WikiText-2, the validation split of TinyStories;
    * ``"pydoc"``: the English of CPython's own help topics (``pydoc_data.topics``).

    Rows of files and datasets are documents as they are, blank ones too.

    Raises:
        DataError: it is missing, damaged, empty, not UTF-8, or has no column of text.
        MissingDependencyError: a dataset without the ``datasets`` library; names the pip line.
    """
    return _documents(source)


def check_text(source: str, *, learned: bool = False) -> None:
    """Find out before the work that a text cannot be read. Of a dataset only the first row is.

    Args:
        learned: a model is to be calibrated or trained on it.

    Raises:
        DataError, MissingDependencyError: see :func:`read_documents` and, if it is ``learned``, :func:`require_unmeasured`.
    """
    if learned:
        require_unmeasured(source)
    _documents(source, rows=1)


def require_unmeasured(source: str) -> None:
    """Refuse to learn from a short name: it stands for the split that models are measured on.

    Raises:
        DataError: names the split to learn from.
    """
    if source in DATASETS and not os.path.exists(source):
        train = f"{DATASETS[source].rpartition(':')[0]}:train"
        raise DataError(f"{source} is the split that models are measured on; calibrate and train on {train}")


def _documents(source: str, rows: int | None = None) -> list[str]:
    """The documents; of a dataset only the first ``rows``, which may be blank."""
    if not source.strip():
        raise DataError(f"the text's name is empty; {_FORMS}")
    path = Path(os.path.expanduser(source))  # Path.expanduser raises where there is no such user
    there = os.path.exists(path)
    if not there and source in DATASETS:
        source = DATASETS[source]
    if source == BUILT_IN and not there:
        documents = _help_topics()
    elif path.is_dir() if there else ":" in source:
        documents = _dataset(source, *_dataset_parts(source, path, there=there), rows=rows)
    elif path.suffix == ".parquet" and there:
        documents = _dataset(source, "parquet", None, "train", file=path, rows=rows)
    elif path.suffix in _TABLES and there:
        raise DataError(f"{source} would be read as prose, signs and all; write it as .jsonl, .parquet or .txt")
    elif path.suffix == ".jsonl":
        documents = _texts(_json_lines(source, _file(source, path)))
    else:
        documents = _split(_file(source, path))
    if not any(document.strip() or rows for document in documents):
        raise DataError(f"{source} is empty")
    return documents


def _help_topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[key] for key in sorted(topics)]


def _file(source: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte-order mark is no text
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from None
    except OSError as error:
        raise DataError(f"cannot read the text {source} ({error.strerror}); {_FORMS}") from None


def _split(text: str) -> list[str]:
    if SEPARATOR not in text:
        return [text]
    return [document.strip() for document in text.split(SEPARATOR) if document.strip()]


def _json_lines(source: str, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): JSON strings may hold its other separators
        if line.strip():
            try:
                yield f"{source}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{source}, line {number} is not JSON ({error}); repair or delete it") from None


def _texts(rows: Iterable[tuple[str, Any]]) -> list[str]:
    """The text of each (place, row); the first row decides which field it is."""
    field: str | None = None
    documents = []
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f'{where} is not an object; write {{"text": "..."}}')
        field = _text_field(where, row) if field is None else field
        document = row.get(field)
        if not isinstance(document, str):
            raise DataError(f"{where} has no text under {field!r}, as the rows before it have; repair or delete it")
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where} is not Unicode ({error.reason}); repair or delete it") from None
        documents.append(document)
    return documents


def _text_field(where: str, row: dict[str, Any]) -> str:
    strings = ["text"] if isinstance(row.get("text"), str) else [key for key, value in row.items() if isinstance(value, str)]
    if len(strings) != 1:
        found = "several strings: " + ", ".join(map(repr, strings)) if strings else "no text"
        raise DataError(f'{where} has {found}; name the field to be read "text"')
    return strings[0]


def _dataset_parts(source: str, path: Path, *, there: bool) -> tuple[str, str | None, str]:
    """Name, config and split; the whole of ``source`` is the name if it is a folder."""
    name, _, rest = (str(path), "", "") if there else source.partition(":")
    config, _, split = rest.partition(":")  # a split may hold colons: train[:1000]
    return os.path.expanduser(name), config or None, split or "train"


def _dataset(
    source: str, name: str, config: str | None, split: str, *, file: Path | None = None, rows: int | None
) -> list[str]:
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError(f"{source} is read with the datasets library: pip install 'potq[data]'") from None
    try:
        read = enumerate(islice(_rows(datasets, name, config, split, file), rows), 1)
        return _texts((f"{source}, row {number}", row) for number, row in read)
    except DataError:
        raise
    except Exception as error:  # datasets and what it builds on raise many kinds
        if not Path(name).exists() and (missing := out_of_reach(f"the dataset {source}", error)):
            raise DataError(f"{missing}; a dataset is written name:config:split") from error
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"cannot load the dataset {source} ({reason}); write it as name:config:split; a name that is not a folder "
            "here is looked for on the hub, which needs the network the first time"
        ) from error


def _rows(datasets: Any, name: str, config: str | None, split: str, file: Path | None) -> Iterable[dict[str, Any]]:
    """Local files are read where they are; from the hub they come through the cache of ``datasets``."""
    if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():  # made by save_to_disk
        saved: Any = datasets.load_from_disk(name)
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise DataError(f"{name} has no split {split!r}; it has {', '.join(saved)}")
            saved = saved[split]
        rows: Iterable[dict[str, Any]] = saved
    else:
        options = {"data_files": str(file)} if file is not None else {}
        local = file is not None or Path(name).is_dir()
        rows = datasets.load_dataset(name, config, split=split, streaming=local, **options)
    return rows
