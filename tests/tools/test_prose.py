"""What ``make prose`` counts: sentences of prose, and nothing else."""

from pathlib import Path

import pytest

from prose import main, mean, sentences

PAGE = """\
# A heading of no interest

One two three. Is this a sentence? It is: a colon ends nothing; nor
does a semicolon (e.g. this one).

```bash
potq quantize smollm2 out   # Code. Has. No. Sentences.
```

| a table | is. no. prose |
|---|---|

<!-- a comment. It has
two lines. -->
**Threads.** They are torch's.

* The first item
* The second, which goes
  on. And has another sentence.

![A picture. Of levels](../a.b.png) [Two words](https://example.org/a. b) follow `a.b. c` here.
"""


def test_counts_words_of_prose() -> None:
    found = [(one.line, one.words, one.text.split()[0]) for one in sentences(PAGE)]
    assert found == [
        (3, 3, "One"),
        (3, 4, "Is"),
        (3, 13, "It"),
        (15, 3, "They"),
        (17, 3, "The"),
        (18, 5, "The"),
        (19, 4, "And"),
        (21, 6, "Two"),
    ]
    assert mean(sentences(PAGE)) == pytest.approx(41 / 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Levels 0, 1, 2, ..., 64 are kept.", [7]),  # an ellipsis, and numbers are words
        ("4.25 bits, as in llama.cpp v0.1 files.", [7]),  # points inside words
        ("It ends (in brackets.) So it does.", [4, 3]),
        ("A - dash - is / no = word.", [5]),
        ("> Quoted words\n> go on. Then end.", [4, 2]),
        ("Text without an end", [4]),
        ("Text, then code:\n```\na. b.\n```\nand more.", [3, 2]),
        ("- item\n\n  ```python\n  x = 1\n  ```\n- another", [1, 1]),
        ("**This is a sentence in bold.** And this.", [6, 2]),
        ("A **bold word.** Next.", [3, 1]),
        ("Run `potq --help.` first.", [4]),
        ("::: potq.quantize", []),
        ("", []),
    ],
)
def test_sentences(text: str, words: list[int]) -> None:
    assert [one.words for one in sentences(text)] == words


def test_fails_on_long_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n\n".join(["Sixteen" + " words" * 15 + "."] * 4))
    assert main([str(page)]) == 0
    page.write_text("Seventeen" + " words" * 16 + ".")  # the mean
    assert main([str(page)]) == 1
    page.write_text("\n\n".join(["One."] * 32 + ["Long" + " words" * 30 + "."]))  # 1 of 33 is over 30 words
    assert main([str(page)]) == 1
    assert f"{page}:65: 31 words" in capsys.readouterr().out
    page.write_text("\n\n".join(["One."] * 33 + ["Long" + " words" * 30 + "."]))  # 1 of 34 is less than 3 %
    assert main([str(page)]) == 0


def test_reads_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--longest", "0"])
    printed = capsys.readouterr().out
    assert "README.md" in printed
    assert "docs/architecture.md" in printed
