"""One contestant of ``decode/speed.py`` in a process of its own: ``python -m benchmarks.decode.worker KIND ARGUMENT``.

Prints its facts as a line of JSON, then answers every line of standard input, a JSON list of a method and its arguments, by
a line with the result. Between requests it sleeps.
"""

from __future__ import annotations

import json
import os
import sys

from benchmarks.decode.contestants import KINDS
from benchmarks.peers.packages import UnavailableError


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # libraries may print to standard output
    os.dup2(2, 1)

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        contestant = KINDS[sys.argv[1]](sys.argv[2])
    except UnavailableError as error:
        answer({"unavailable": str(error)})
        return
    answer(contestant.facts())
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        answer(getattr(contestant, method)(*arguments))


if __name__ == "__main__":
    main()
