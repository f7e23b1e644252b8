"""Large models on a small machine: their folders, the commands that are watched, what is said of the rows."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import potq
from benchmarks.common.goals import verdict
from benchmarks.scale.folders import LLAMA3_8B, TINY, write
from benchmarks.scale.goals import scale
from benchmarks.scale.measure import estimated
from benchmarks.scale.report import line
from benchmarks.scale.watched import watched


def test_a_folder_is_a_model_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    shapes = replace(TINY, blocks=1)
    folder = write(shapes, tmp_path)
    shard, config = folder / "model-00002-of-00003.safetensors", folder / "config.json"
    first, before = shard.read_bytes(), (folder / "model-00001-of-00003.safetensors").stat().st_mtime_ns
    config.unlink()
    shard.unlink()
    assert write(shapes, tmp_path) == folder
    assert shard.read_bytes() == first
    assert (folder / "model-00001-of-00003.safetensors").stat().st_mtime_ns == before
    model = potq.load(folder)
    assert model.dtype == torch.bfloat16
    assert model(torch.arange(8)[None]).logits.isfinite().all()


def test_the_shapes_are_those_of_llama_3_8b() -> None:
    weights = sum(torch.Size(shape).numel() for shard in LLAMA3_8B.shards() for shape in shard.values())
    assert weights == 8_030_261_248


def test_a_command_is_watched(tmp_path: Path) -> None:
    program = "import time; kept = bytearray(200_000_000); time.sleep(0.5); print('{\"a\": 1}')"
    found = watched([sys.executable, "-c", program], threads=1, folder=tmp_path)
    assert found.json() == {"a": 1}
    assert found.seconds > 0.5
    assert 200e6 < found.private <= found.resident < 400e6


def test_a_command_that_was_killed_is_watched_on(tmp_path: Path) -> None:
    program = """
import pathlib, sys, time
first = pathlib.Path(sys.argv[1])
if first.exists(): print(0)
else: kept = bytearray(200_000_000); time.sleep(0.5); first.touch(); sys.exit(1)
"""
    command, kept = [sys.executable, "-c", program, str(tmp_path / "first")], tmp_path / "until-now.json"
    with pytest.raises(SystemExit):
        watched(command, threads=1, folder=tmp_path, kept=kept)
    found = watched(command, threads=1, folder=tmp_path, kept=kept)
    assert found.seconds > 0.5
    assert 200e6 < found.private <= found.resident < 400e6
    assert not kept.exists()
    assert watched(command, threads=1, folder=tmp_path, kept=kept).resident < 200e6


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended with 3:\nwhy"):
        watched([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"], threads=1, folder=tmp_path)


@pytest.mark.parametrize(("said", "seconds"), [("81 s", 81), ("12 min", 720), ("2.5 h", 9000)])
def test_the_estimate_is_the_commands_own(said: str, seconds: float) -> None:
    assert estimated(f"calibration: 8 windows\nquantizing: about {said}, 1.6 GB\n") == seconds
    with pytest.raises(SystemExit, match="no estimate"):
        estimated("quantizing")


def test_rows_are_judged_and_told() -> None:
    sizes = {"resident": 5e9, "private": 4e9, "wall_seconds": 3600.0}
    rows = [
        {"part": "memory", "blocks": 32, "hidden_states": 1e8, "beside_cache": 4.9e9, **sizes},
        {"part": "time", "blocks": 2, "estimated_seconds": 50.0, "seconds": 100.0, "ratio": 0.5, **sizes},
        *(
            {"part": "ranks", "round": turn, "one": 100.0, "two": 50.0 + turn, "speedup": 100 / (50 + turn)}
            for turn in range(3)
        ),
        {"part": "experts", "case": "decode", "stack": 0.002, "linears": 0.001, "speed": 0.5},
        {"part": "experts", "case": "prompt", "stack": 0.003, "linears": 0.001, "speed": 1 / 3},
    ]
    assert [verdict(goal) for goal in scale(rows)] == ["met", "missed", "met", "missed"]
    assert [goal["measured"] for goal in scale(rows)] == [4.9e9, 2.0, 100 / 51, 1 / 3]
    two = [row | {"beside_cache": 4.8e9} for row in rows[1:2]]
    assert scale([*rows, *two])[0]["measured"] == 4.9e9  # more blocks tell more
    assert scale(two)[0]["rows"] == ["2 blocks"]
    assert {verdict(goal) for goal in scale([])} == {"not measured"}
    assert line(rows[0]) == ("8B, 32 blocks: peak memory", "5.00 GB, 4.00 GB without mapped files; 1.0 h")
    assert line(rows[1]) == ("8B, 2 blocks: time", "100 s, said to be 50 s; peak 5.00 GB")
    assert line(rows[-1]) == ("experts, prompt", "stack 3.00 ms, linears 1.00 ms")
