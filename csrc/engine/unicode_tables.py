"""Writes unicode_tables.h: the character classes of the tokenizer's patterns.

The classes are those that the `tokenizers` library has (it is asked for every code point), so that both cut texts alike
whatever the version of Unicode; what NFC might change is Python's unicodedata's to say.

Run: python csrc/engine/unicode_tables.py > csrc/engine/unicode_tables.h
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import tokenizers
from tokenizers import Regex
from tokenizers.pre_tokenizers import Digits, PreTokenizer, Split

CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def cut(pre_tokenizer: PreTokenizer) -> set[int]:
    """The code points that stand alone when cut from letters around them (which must not be among them)."""
    found = set()
    for start in range(0, len(CODES), 4096):
        part = CODES[start : start + 4096]
        text = "".join(f"a{chr(code)}" for code in part)
        alone = {begin for _, (begin, end) in pre_tokenizer.pre_tokenize_str(text) if end - begin == 1}
        found |= {code for i, code in enumerate(part) if 2 * i + 1 in alone}
    return found


def letters() -> set[int]:
    """As :func:`cut`, for a class that letters are in: the filler is a digit."""
    found = set()
    pre_tokenizer = Split(Regex(r"\p{L}"), "isolated")
    for start in range(0, len(CODES), 4096):
        part = CODES[start : start + 4096]
        pieces = pre_tokenizer.pre_tokenize_str("".join(f"1{chr(code)}" for code in part))
        found |= {part[begin // 2] for _, (begin, end) in pieces if end - begin == 1 and begin % 2}
    return found


def unsafe() -> set[int]:
    """Code points that NFC changes, moves or composes with what stands before them."""
    seconds = set()
    for code in CODES:
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            seconds.add(int(parts[1], 16))
    seconds |= {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # Hangul is composed by rule
    return {
        code
        for code in CODES
        if code in seconds or unicodedata.combining(chr(code)) or not unicodedata.is_normalized("NFC", chr(code))
    }


def ranges(codes: set[int]) -> list[tuple[int, int]]:
    result: list[tuple[int, int]] = []
    for code in sorted(codes):
        if result and result[-1][1] == code:
            result[-1] = (result[-1][0], code + 1)
        else:
            result.append((code, code + 1))
    return result


def show(name: str, what: str, codes: set[int]) -> None:
    print(f"\n// {what}: {len(codes)} code points\nconstexpr uint32_t {name}[][2] = {{")
    line = "   "
    for start, end in ranges(codes):
        item = f" {{{start:#x}, {end:#x}}},"
        if len(line) + len(item) > 126:
            print(line)
            line = "   "
        line += item
    print(f"{line}\n}};")


def check(name: str, found: set[int], test: Callable[[str], bool]) -> None:
    """A filler that hid a class would make it absurdly small."""
    assert len(found) > 0.9 * sum(test(chr(code)) for code in CODES), name


def main() -> None:
    found = {
        "kLetters": (r"\p{L}", letters()),
        "kNumbers": (r"\p{N}", cut(Split(Regex(r"\p{N}"), "isolated"))),
        "kSpaces": (r"\s", cut(Split(Regex(r"\s"), "isolated"))),
        "kDigits": ("what the pre-tokenizer Digits cuts off", cut(Digits(individual_digits=True))),
        "kUnsafe": ("what NFC may change", unsafe()),
    }
    check("kLetters", found["kLetters"][1], str.isalpha)
    check("kNumbers", found["kNumbers"][1], lambda c: unicodedata.category(c)[0] == "N")
    check("kSpaces", found["kSpaces"][1], lambda c: c.isspace() and c not in "\x1c\x1d\x1e\x1f")
    print(f"// Written by unicode_tables.py (tokenizers {tokenizers.__version__}, Unicode {unicodedata.unidata_version}).")
    print("// Ranges [first, last + 1), ascending.\n#pragma once\n\n#include <cstdint>\n")
    print("namespace potq {\nnamespace engine {\nnamespace {")
    for name, (what, codes) in found.items():
        show(name, what, codes)
    print("\n}  // namespace\n}  // namespace engine\n}  // namespace potq")


if __name__ == "__main__":
    main()
