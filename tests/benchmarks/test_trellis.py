"""What the picture of a trellis shows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

import potq
from benchmarks.trellis.plot import draw, row, ways


def test_the_drawn_row_goes_along_ways_whose_levels_it_takes() -> None:
    _, chosen, states = row()
    levels = sorted(potq.QuantScheme("pot2t").grid.levels)
    subsets = {(before, after): subset for before, after, subset in ways()}
    assert len(subsets) == 16
    assert states[0] == 0
    assert [levels.index(level) % 4 for level in chosen.tolist()] == [subsets[way] for way in pairwise(states)]


def test_the_same_drawing_is_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    assert draw(tmp_path / "one.svg") == "drawn: one.svg"
    draw(tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
