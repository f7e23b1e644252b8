"""Tables of eight levels whose scale has a sign: what the sign is worth, and which two-term table is best.

``python -m benchmarks.ptq.signed_tables`` (a minute). Signal to noise in dB over groups of 64 Gaussian weights, every group
with its own best float16 scale (exact, ``potq.numerics.scale_search``). Tables with a zero, and at most two signed powers of
two a level, are searched by exchanging one level at a time, from seeded starts; one without a zero adds noise to inputs of
massive activation.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.ptq.apot_search import POOL
from benchmarks.ptq.goals import SIGNED_TABLES
from potq.nn.report import decibels
from potq.numerics.grid import table
from potq.ptq.algorithms.rtn import rtn

GROUPS, GROUP, STARTS, TRIES, SEED = 4000, 64, 12, 1200, 0
LEVELS = [sign * level for level in POOL if level for sign in (1, -1)]
KNOWN = ("pot3", "pot3nz", "pot3s", "apot3", "apot3s", "int3", "int3_midrise")
PROTOCOL = f"{GROUPS} groups of {GROUP} Gaussian weights, seed {SEED}; exact float16 scales; decibels over all"


def quality(weight: Tensor, scheme: potq.QuantScheme) -> float:
    """Decibels."""
    return decibels(*rtn(weight, scheme).energies(weight))


def signed(levels: list[int]) -> potq.QuantScheme:
    return potq.QuantScheme(grid=table(tuple(sorted(levels))), signed_scale=True)


def search(weight: Tensor, rng: random.Random) -> tuple[float, list[int]]:
    """The best table of some hundred exchanges; fewer groups are enough to tell tables apart."""
    few = weight[: GROUPS // 8]
    levels = [
        0,
        *rng.sample([level for level in LEVELS if level < 0], 3),
        *rng.sample([each for each in LEVELS if each > 0], 4),
    ]
    best = quality(few, signed(levels))
    for _ in range(TRIES):
        place, other = rng.randrange(1, 8), rng.choice(LEVELS)
        if other in levels or (other > 0) != (levels[place] > 0):
            continue
        changed = [*levels[:place], other, *levels[place + 1 :]]
        found = quality(few, signed(changed))
        if found > best:
            best, levels = found, changed
    return quality(weight, signed(levels)), sorted(levels)


def main() -> None:
    weight = torch.randn(GROUPS, GROUP, generator=torch.Generator().manual_seed(SEED))
    schemes = {name: potq.PRESETS[name] for name in KNOWN} | {"int3 signed": potq.QuantScheme("int3", signed_scale=True)}
    rows: list[Row] = []
    for name, scheme in schemes.items():
        rows.append({"table": name, "levels": sorted(set(scheme.grid.levels)), "decibels": quality(weight, scheme)})
    for start in range(STARTS):
        value, levels = search(weight, random.Random(start))
        rows.append({"table": f"searched, start {start}", "levels": levels, "decibels": value})
    for row in rows:
        print(f"{row['decibels']:.2f} dB  {row['table']}: {row['levels']}")
    SIGNED_TABLES.write(PROTOCOL, rows)
    print_goals(SIGNED_TABLES.judge(rows))


if __name__ == "__main__":
    main()
