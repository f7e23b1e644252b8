"""Code blocks of Markdown files: which run, which do not and why, and what they are said to print.

A line of HTML comment before a fence says what a reader need not see:

* ``<!-- not run: reason -->``: the block does not run;
* ``<!-- slow: reason -->``: the block runs in ``make check-deep`` only, with the real SmolLM2;
* ``<!-- not compared: reason -->``, before a ``console`` block: what it shows differs from run to run.

A ``console`` block right after a block that runs is its output. In Python ``# prints TEXT`` is a line of output.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

LANGUAGES = {"bash": "bash", "sh": "bash", "python": "python"}
OUTPUT = "console"
TAGS = ("not run", "slow", "not compared")
TOLERANCE = 0.02  # of numbers: instruction sets sum in different orders

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<language>[\w+-]*)[^`]*$")
_COMMENT = re.compile(r"^ *<!-- *(?P<tag>[a-z ]+?)(?: *: *(?P<reason>.*?))? *-->$")
_PRINTS = re.compile(r"# prints (?P<text>.+)$", re.MULTILINE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class DocumentError(Exception):
    """A document that breaks the rules above; the message begins with FILE:LINE."""


@dataclass
class Block:
    """A block that can run. ``tag`` is "", "not run" or "slow"; ``output`` is what is shown after it, if anything is."""

    file: Path
    line: int
    language: str
    text: str
    tag: str = ""
    output: list[str] | None = None
    compared: bool = True

    @property
    def prints(self) -> list[str]:
        """Lines of output that the comments of a Python block promise, in order; others may stand between."""
        return [found["text"] for found in _PRINTS.finditer(self.text)] if self.language == "python" else []

    @property
    def place(self) -> str:
        return f"{self.file.name}:{self.line}"


@dataclass
class _Fenced:
    """Any fenced block, as it is written."""

    line: int
    language: str
    tag: str = ""
    after: int | None = None  # the fenced block that only blank lines and comments divide from this one
    lines: list[str] = field(default_factory=list)


def read_blocks(file: Path) -> list[Block]:
    """The blocks of ``file`` that can run, in order.

    Raises:
        DocumentError: a tag without a reason or a block, a fence without an end, an output of nothing.
    """
    blocks: dict[int, Block] = {}
    for number, fenced in enumerate(_fences(file)):
        if fenced.language == OUTPUT:
            _add_output(file, fenced, blocks.get(-1 if fenced.after is None else fenced.after))
        elif fenced.language in LANGUAGES:
            if fenced.tag == "not compared":
                raise DocumentError(f"{file.name}:{fenced.line}: 'not compared' is for output, in a block of {OUTPUT}")
            text = "\n".join(fenced.lines) + "\n"
            blocks[number] = Block(file, fenced.line, LANGUAGES[fenced.language], text, fenced.tag)
        elif fenced.tag:
            raise DocumentError(f"{file.name}:{fenced.line}: '{fenced.tag}' before a block that never runs")
    return list(blocks.values())


def _add_output(file: Path, fenced: _Fenced, block: Block | None) -> None:
    if block is None:
        raise DocumentError(f"{file.name}:{fenced.line}: output of no block; name another language, e.g. text")
    if fenced.tag in ("not run", "slow"):
        raise DocumentError(f"{file.name}:{fenced.line}: '{fenced.tag}' is for the block that prints this")
    block.output, block.compared = fenced.lines, fenced.tag != "not compared"


def _fences(file: Path) -> list[_Fenced]:
    found: list[_Fenced] = []
    opened, closing, indent, tag, near = False, "", 0, "", None
    for line, text in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if opened:
            if text.strip() == closing:
                opened, near = False, len(found) - 1
            else:
                found[-1].lines.append(text[min(indent, len(text) - len(text.lstrip())) :])
        elif fence := _FENCE.match(text):
            opened, closing, indent = True, fence["ticks"], len(fence["indent"])
            found.append(_Fenced(line, fence["language"], tag, near))
            tag, near = "", None
        elif comment := _tag(file, line, text):
            tag = comment
        elif text.strip():
            if tag:
                raise DocumentError(f"{file.name}:{line}: '{tag}' has no block after it")
            near = None
    if opened or tag:
        raise DocumentError(f"{file.name}: the last block has no end" if opened else f"{file.name}: '{tag}' has no block")
    return found


def _tag(file: Path, line: int, text: str) -> str:
    """The tag in a line of comment; other comments have none."""
    comment = _COMMENT.match(text)
    if comment is None or comment["tag"] not in TAGS:
        return ""
    if not comment["reason"]:
        raise DocumentError(f"{file.name}:{line}: '{comment['tag']}' without a reason")
    return comment["tag"]


def differs(expected: list[str], printed: str) -> str:
    """The first line of ``expected`` that is not printed in its place, or "".

    ``...`` is any text in a line, and any lines if it is a whole one. Numbers may differ by 2 %.
    """
    rest, anywhere = [line for line in map(_squeezed, printed.split("\n")) if line], False
    for line in filter(None, map(_squeezed, expected)):
        if line == "...":
            anywhere = True
            continue
        places = [place for place, found in enumerate(rest) if _alike(line, found)]
        if not places or (places[0] and not anywhere):
            return line
        rest, anywhere = rest[places[0] + 1 :], False
    return "" if anywhere or not rest else f"nothing more, but it printed {rest[0]!r}"


def lacks(expected: list[str], printed: str) -> str:
    """As :func:`differs`, with any lines between those of ``expected``."""
    return differs([text for line in expected for text in ("...", line)] + ["..."], printed)


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def _alike(expected: str, found: str) -> bool:
    if "..." in expected:
        return re.fullmatch(".*".join(map(re.escape, expected.split("..."))), found) is not None
    if _NUMBER.sub("#", expected) != _NUMBER.sub("#", found):
        return False
    pairs = zip(_NUMBER.findall(expected), _NUMBER.findall(found), strict=True)
    return all(math.isclose(float(left), float(right), rel_tol=TOLERANCE) for left, right in pairs)
