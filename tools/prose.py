"""How long the sentences of README.md and docs/ are: ``make prose``.

Only prose counts. Code blocks, tables, headings, comments, images and the targets of links are left out. So are short
headings in bold at the start of a paragraph ("**Threads.** ..."). A sentence ends with its paragraph or list item, or at a
full stop, question mark or exclamation mark. Colons and semicolons do not end it.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_WORDS, MOST_LONG = 16.0, 0.03  # the mean of all sentences; the share of them that may be long
LONG = 30  # words: a sentence with more is long

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FENCE = re.compile(r"^\s*(?:>\s*)*(?:[-*+]\s+)?(```+|~~~+)")
_SKIPPED = re.compile(r"^\s*(?:#{1,6}\s|\||:::|!!!|\?\?\?|\[[^\]]+\]:\s|(?:[-*_]\s*){3,}$|={3,}\s*$)")
_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")
_QUOTE = re.compile(r"^\s*(?:>\s?)+")
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_TAG = re.compile(r"</?[A-Za-z][^>\n]*>")
_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_RUN_IN = re.compile(r"^\*\*((?:[^*\s]+\s?){1,3})\*\*(?=\s)")
_WORD = re.compile(r"\S+")
_END = re.compile(r"(?<!\.)[.!?][)\]\"'*_\u201d]*$")  # an ellipsis ends nothing
_ABBREVIATIONS = {"e.g.", "i.e.", "cf.", "vs.", "etc.", "fig.", "eq.", "no.", "approx."}


@dataclass(frozen=True)
class Sentence:
    """A sentence, the line it starts on (from 1), and how many words it has."""

    line: int
    text: str
    words: int


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """The paragraphs and list items of Markdown, each with the number of its first line."""
    text = _COMMENT.sub(lambda found: "\n" * found.group().count("\n"), text)
    fence, first, block = "", 0, list[str]()
    for number, line in enumerate(text.split("\n") + [""], start=1):
        opening = _FENCE.match(line)
        if fence:
            fence = "" if line.strip(" >").rstrip() == fence else fence
            continue
        bare = _QUOTE.sub("", line)
        ends = opening or not bare.strip() or _SKIPPED.match(bare) or _ITEM.match(bare)
        if ends and block:
            yield first, "\n".join(block)
            block = []
        if opening:
            fence = opening.group(1)
        elif bare.strip() and not _SKIPPED.match(bare):
            first = first if block else number
            block.append(_ITEM.sub("", bare))


def plain(block: str) -> str:
    """A block without markup, on as many lines. Code keeps its words but no punctuation that could end a sentence."""
    code = list[str]()

    def keep(found: re.Match[str]) -> str:
        code.append(found.group(2))
        return f"\x00{len(code) - 1}\x00"

    block = _CODE.sub(keep, block)
    block = _TAG.sub("", _LINK.sub(r"\1", _IMAGE.sub("", block)))
    run_in = _RUN_IN.match(block)
    if run_in and run_in.group(1)[-1] in ".:":
        block = block[run_in.end() :]
    block = block.replace("**", "")
    return re.sub(r"\x00(\d+)\x00", lambda found: re.sub(r"[.!?]+(?=\s|$)", "", code[int(found.group(1))]), block)


def sentences(text: str) -> list[Sentence]:
    """All sentences of a Markdown text."""
    result = []
    for first, block in blocks(text):
        bare = plain(block)
        words = list(_WORD.finditer(bare))
        start = 0
        for index, word in enumerate(words):
            ends = _END.search(word.group()) and word.group().lstrip("(\"'").lower() not in _ABBREVIATIONS
            if not ends and index + 1 < len(words):
                continue
            part = [one.group() for one in words[start : index + 1]]
            count = sum(any(letter.isalnum() for letter in one) for one in part)
            if count:
                line = first + bare.count("\n", 0, words[start].start())
                result.append(Sentence(line, " ".join(part), count))
            start = index + 1
    return result


def mean(found: list[Sentence]) -> float:
    """Words per sentence; 0 where there is no sentence."""
    return sum(one.words for one in found) / len(found) if found else 0.0


def long_share(found: list[Sentence]) -> float:
    """The share of sentences that are long; 0 where there is no sentence."""
    return sum(one.words > LONG for one in found) / len(found) if found else 0.0


def main(arguments: list[str] | None = None) -> int:
    """Print what was counted; 1 if the sentences are too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="instead of README.md and docs/")
    parser.add_argument("--longest", type=int, default=10, help="how many of the longest sentences to print")
    options = parser.parse_args(arguments)
    files = options.files or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = {file: sentences(file.read_text(encoding="utf-8")) for file in files}
    everything = [one for file in files for one in found[file]]
    width = max(len(_name(file)) for file in files)
    print(f"{'':{width}}  sentences  words each  over {LONG} words")
    for name, group in [*((_name(file), found[file]) for file in files), ("all", everything)]:
        print(f"{name:{width}}  {len(group):9}  {mean(group):10.1f}  {long_share(group):11.1%}")
    longest = sorted(((one, file) for file in files for one in found[file]), key=lambda pair: -pair[0].words)
    for one, file in longest[: options.longest]:
        print(f"\n{_name(file)}:{one.line}: {one.words} words\n  {one.text}")
    too_long = mean(everything) > MOST_WORDS or long_share(everything) > MOST_LONG
    if too_long:
        print(
            f"\ntoo long: at most {MOST_WORDS:g} words each and {MOST_LONG:.0%} over {LONG} words are wanted",
            file=sys.stderr,
        )
    return int(too_long)


def _name(file: Path) -> str:
    path = file.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(file)


if __name__ == "__main__":
    sys.exit(main())
