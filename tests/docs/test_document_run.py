"""What the tests of code blocks notice: blocks that fail, outputs that differ, tags without a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from code_blocks import DocumentError, differs, lacks, read_blocks
from document_run import DocumentRun


def document(folder: Path, text: str) -> Path:
    file = folder / "guide.md"
    file.write_text(text.replace("'''", "```"))
    return file


def run(folder: Path, text: str) -> DocumentRun:
    """A document after its blocks ran, in ``folder``, with ``make`` as the only command that does not run."""
    run = DocumentRun(folder, folder, {"make": "it would call itself"})
    for block in read_blocks(document(folder, text)):
        run.run(block)
    return run


def test_blocks_share_a_folder_and_a_namespace(tmp_path: Path) -> None:
    run(
        tmp_path,
        "'''bash\necho 3 > number\n'''\n\n'''python\nn = int(open('number').read())\n'''\nText.\n"
        "'''python\nopen('double', 'w').write(str(2 * n))\n'''\n'''yaml\nno: code\n'''\n",
    )
    assert (tmp_path / "double").read_text() == "6"


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("'''bash\ntrue\nfalse\ntrue\n'''", "guide.md:1 ends with status 1"),
        ("'''sh\necho $unknown\n'''", "guide.md:1 ends with status"),
        ("Text\n'''python\n1 / 0\n'''", "line 3, in <module>"),
        ("'''python\nassert False\n'''", "guide.md:1 fails"),
        ("'''python\nprint(1.1)  # prints 1.2\n'''", "does not print '1.2'"),
        ("'''bash\necho one\n'''\n\n'''console\ntwo\n'''", "does not print 'two'"),
        ("'''bash\necho one; echo two\n'''\n'''console\none\n'''", "it printed 'two'"),
    ],
)
def test_a_block_that_fails_fails_the_test(tmp_path: Path, block: str, said: str) -> None:
    with pytest.raises(AssertionError, match=r"guide\.md") as error:
        run(tmp_path, block)
    assert said in str(error.value)


def test_outputs_that_agree(tmp_path: Path) -> None:
    run(
        tmp_path,
        "'''python\nprint('first')\nprint(10.1)  # prints 10.0\n'''\n"
        "'''bash\nmake demo && echo one   two; echo 5.01 s; echo three\n'''\n'''console\none two\n5.01 ...\nthree\n'''\n"
        "'''bash\ndate\n'''\n<!-- not compared: it is another day -->\n'''console\n1 January 1970\n'''\n",
    )


def test_tags_keep_blocks_from_running(tmp_path: Path) -> None:
    file = document(
        tmp_path,
        "<!-- not run: wants a GPU -->\n\n'''bash\nexit 1\n'''\n<!-- slow: hours -->\n'''python\n1\n'''\n'''sh\n'''\n",
    )
    assert [block.tag for block in read_blocks(file)] == ["not run", "slow", ""]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- not run: -->\n'''bash\n'''", "'not run' without a reason"),
        ("<!-- slow -->\n'''bash\n'''", "'slow' without a reason"),
        ("<!-- not run: why -->\nText\n'''bash\n'''", "'not run' has no block after it"),
        ("<!-- not run: why -->\n", "'not run' has no block"),
        ("<!-- not run: why -->\n'''yaml\n'''", "before a block that never runs"),
        ("<!-- not compared: why -->\n'''bash\n'''", "is for output"),
        ("'''console\nhello\n'''", "output of no block"),
        ("'''bash\n'''\nText\n'''console\nhello\n'''", "output of no block"),
        ("'''bash\n'''\n<!-- slow: why -->\n'''console\nhello\n'''", "is for the block that prints this"),
        ("'''bash\necho\n", "the last block has no end"),
    ],
)
def test_rules_that_a_document_breaks(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DocumentError, match=r"guide\.md") as error:
        read_blocks(document(tmp_path, text))
    assert said in str(error.value)


def test_other_comments_and_indented_blocks(tmp_path: Path) -> None:
    file = document(tmp_path, "<!-- a note: no tag -->\n* item\n\n  '''python\n  if 1:\n      x = 1\n  '''\n")
    (block,) = read_blocks(file)
    assert (block.text, block.line, block.tag) == ("if 1:\n    x = 1\n", 4, "")


def test_comparison_of_output() -> None:
    assert not differs(["a 100 b", "...", "z"], "a 101 b\nmore\nlines\nz\n")
    assert differs(["a 100 b"], "a 103 b") == "a 100 b"
    assert differs(["a", "c"], "a\nb\nc") == "c"
    assert differs(["a", "..."], "b\na") == "a"
    assert differs(["a ... c"], "a b d") == "a ... c"
    assert not lacks(["b", "d"], "a\nb\nc\nd\ne")
    assert lacks(["d", "b"], "a\nb\nc\nd") == "b"
