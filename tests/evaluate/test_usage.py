"""How often each magnitude is used: counts and plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from potq import QuantScheme
from potq.errors import MissingDependencyError
from potq.evaluate.usage import level_usage, plot_usage
from potq.nn.packed_model import packed_modules
from potq.numerics.tensor import QuantizedWeight


def quantized(levels: list[list[int]], scheme: QuantScheme) -> QuantizedWeight:
    """A weight whose levels are given."""
    scale = torch.ones(scheme.scale_shape(len(levels), len(levels[0])), dtype=torch.float16)
    return QuantizedWeight.from_scale(torch.tensor(levels) / scheme.grid.reference, scale, scheme)


def test_magnitudes_are_counted_by_scheme() -> None:
    pot3, int2 = QuantScheme("pot3"), QuantScheme("int2")
    weights = {
        "a": quantized([[0, 1, -1, 2, 4, -4]], pot3),
        "b": quantized([[4, 4, 4]], pot3),
        "c": quantized([[1, 0, -1, -2]], int2),
    }
    usage = level_usage(weights)
    assert usage == {"int2-g64": {0: 1, 1: 2, 2: 1}, "pot3-g64": {0: 1, 1: 2, 2: 1, 4: 5}}
    assert list(usage) == sorted(usage)
    assert list(usage["pot3-g64"]) == [0, 1, 2, 4]


def test_every_weight_of_a_model_is_counted(packed_model: Any) -> None:
    packed = {name: m.quantized for name, m in packed_modules(packed_model).items() if m.tied_to is None}
    usage = level_usage(packed)
    assert set(usage) == {"pot4-g64", "int8-g64"}
    assert sum(usage["int8-g64"].values()) == 260 * 64
    assert sum(usage["pot4-g64"].values()) == sum(w.shape[0] * w.shape[1] for w in packed.values()) - 260 * 64
    assert list(usage["pot4-g64"]) == [0, 1, 2, 4, 8, 16, 32, 64]
    assert all(usage["pot4-g64"].values())


def test_a_wide_grid_is_binned() -> None:
    weight = quantized([list(range(-128, 128))], QuantScheme("int8", group_size="row"))
    (counts,) = level_usage({"a": weight}).values()
    assert len(counts) <= 32
    assert sum(counts.values()) == 256
    width = 5  # 129 magnitudes in bins of 5; each magnitude twice, but for 0 and 128
    assert list(counts) == list(range(0, 129, width))
    assert counts[0] == 2 * width - 1
    assert set(list(counts.values())[1:-1]) == {2 * width}


def test_no_weights() -> None:
    assert level_usage({}) == {}


def test_plot_writes_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_usage({"pot3-g64": {0: 1, 1: 2, 2: 1, 4: 5}, "int8-g64": dict.fromkeys(range(26), 1)}, tmp_path / "usage.png")
    assert (tmp_path / "usage.png").read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"--plot draws with matplotlib: pip install 'potq\[plot\]'"):
        plot_usage({"pot3-g64": {0: 1}}, tmp_path / "usage.png")
    assert not (tmp_path / "usage.png").exists()


def test_plot_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from potq.errors import PotqError

    with pytest.raises(PotqError, match="none"):
        plot_usage({"pot3-g64": {0: 1}}, tmp_path / "none" / "usage.png")
