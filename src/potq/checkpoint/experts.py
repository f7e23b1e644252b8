"""Experts in a file that stores each by itself. transformers stacks them, which needs all of them, and all alike."""

from __future__ import annotations

import re
from collections import Counter

from potq.checkpoint.folder import StoredTensor

_EXPERT = re.compile(r"(.*\bexperts\.)(\d+)(\..*)")


def odd_expert(stored: dict[str, StoredTensor]) -> str | None:
    """What is wrong with the first expert that cannot be stacked with those beside it, if there is one.

    Args:
        stored: the headers of all files.
    """
    found: dict[tuple[str, str], dict[int, StoredTensor]] = {}
    numbers: dict[str, set[int]] = {}
    for key, tensor in stored.items():
        if match := _EXPERT.fullmatch(key):
            start, number, rest = match[1], int(match[2]), match[3]
            found.setdefault((start, rest), {})[number] = tensor
            numbers.setdefault(start, set()).add(number)
    for (start, rest), tensors in found.items():
        file = next(iter(tensors.values())).file
        if missing := sorted(numbers[start] - tensors.keys()):
            return f"{file} lacks {start}{missing[0]}{rest}, which other experts have; it is incomplete, copy it again"
        usual = Counter(tensor.shape for tensor in tensors.values()).most_common(1)[0][0]
        for number, tensor in tensors.items():
            if tensor.shape != usual:
                return (
                    f"{tensor.file}: {start}{number}{rest} has shape {list(tensor.shape)}, that of other experts "
                    f"{list(usual)}; only experts of one shape can be stacked"
                )
    return None
