"""``potq quantize`` in two processes: as torchrun starts them, or by hand, where one of them fails."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import cli_stopping
import potq
from cli_helpers import refused, succeed
from potq.cli import processes
from potq.errors import ConfigError

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
FEW = ["calibration.window=32", "calibration.windows=6"]
deep = [pytest.mark.slow, pytest.mark.skipif(not DEEP, reason="takes half a minute: make check-deep")]
needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the second of two that nobody started."""
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path.name.startswith((folder.name, f".{folder.name}")))


# ---- as torchrun starts them


@needs_gloo
def test_torchrun(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    words: list[Any] = ["quantize", tiny_folder, out, "--effort", "balanced", "--scheme", "pot3", "--json", *FEW]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "potq", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    shared = json.loads(result.stdout)  # of the first process, once
    assert shared["output"] == str(out)
    assert result.stderr.count("calibration: 6 windows of 32 tokens, self") == 1
    assert result.stderr.count("shared by 2 processes") == 1
    assert left(out) == ["out"]
    alone = json.loads(succeed(*words[:2], tmp_path / "alone", *words[3:]))
    for one, two in zip(alone["modules"], shared["modules"], strict=True):
        assert (one["name"], one["algorithm"]) == (two["name"], two["algorithm"])
    tokens = torch.arange(40)[None]
    logits = [potq.load(folder)(tokens).logits.detach() for folder in (tiny_folder, tmp_path / "alone", out)]
    errors = [(each - logits[0]).norm() for each in logits[1:]]
    assert errors[1] == pytest.approx(float(errors[0]), rel=0.25)  # a process of its own may compute in bfloat16


# ---- one of them fails


@pytest.fixture
def port() -> int:
    """A free one that no client of another test is given: systems take those from 32768 up."""
    for found in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("localhost", found))
            return found
    raise OSError("no free port")


class Pair:
    """Two processes, each with its own words."""

    def __init__(self, port: int, *words: list[Any]) -> None:
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, *map(str, each)],
                env=os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, each in enumerate(words)
        ]

    def told(self, rank: int) -> str:
        """What a process that ends with an error says last."""
        found = self.processes[rank].communicate(timeout=100)[1]
        assert self.processes[rank].returncode, found  # 1, or what gloo makes of it as Python ends
        return found[found.index("error") :]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    started: list[Pair] = []
    yield started
    for process in (process for pair in started for process in pair.processes):
        process.kill()
        process.wait()


@needs_gloo
@pytest.mark.parametrize(("signal_name", "timeout"), [("SIGKILL", "10"), pytest.param("SIGSTOP", "0.3", marks=deep)])
def test_a_process_that_stops(
    signal_name: str, timeout: str, tiny_folder: Path, out: Path, port: int, pairs: list[Pair]
) -> None:
    words = ["quantize", tiny_folder, out, "--effort", "balanced", "--timeout", timeout, *FEW]
    pair = Pair(port, ["-m", "potq", *words], [cli_stopping.__file__, signal_name, *words])
    pairs.append(pair)
    assert pair.told(0).startswith(
        "error (process 0 of 2): process 0 of 2 waited in vain for the others: one of them has stop"
    )
    if signal_name == "SIGKILL":  # the other one is still there
        assert pair.processes[1].wait(timeout=60) == -signal.SIGKILL
    assert left(out) == [".out.work"]


@needs_gloo
@pytest.mark.slow
@pytest.mark.skipif(not DEEP, reason="takes long: make check-deep")
def test_other_settings(tiny_folder: Path, out: Path, port: int, pairs: list[Pair]) -> None:
    words = ["-m", "potq", "quantize", tiny_folder, out, "--effort", "balanced", *FEW]
    pair = Pair(port, words, [*words, "--seed", "3"])
    pairs.append(pair)
    for rank in range(2):
        expected = (
            f"error (process {rank} of 2): process 1 of 2 disagrees with process 0 in seed (3 there, 0 in process 0); "
        )
        assert pair.told(rank).startswith(expected)
    assert left(out) == []


# ---- what is refused before anything is loaded


@pytest.mark.usefixtures("one_of_two")
def test_what_processes_do_not_share(tiny_folder: Path, out: Path) -> None:
    told = refused(ConfigError, "quantize", tiny_folder, out)
    assert told.startswith("2 processes share a calibrated run, and rounding to nearest is none; run potq in one process")
    told = refused(ConfigError, "quantize", tiny_folder, out, "--budget", "3.5", "--calibration", "self")
    assert told.startswith("budget: 2 processes do not share the choice of schemes; run potq in one")


def test_a_timeout_for_nobody(tiny_folder: Path, out: Path) -> None:
    told = refused(ConfigError, "quantize", tiny_folder, out, "--timeout", "5")
    assert told.startswith("timeout is for several processes, and this is one")


@pytest.mark.usefixtures("one_of_two")
def test_a_gpu_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes.own_device("cuda") == "cuda:1"
    assert processes.own_device(None) is None
    with pytest.raises(ConfigError, match="device cuda:0 is one for all 2 processes; write cuda"):
        processes.own_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="process 1 of this machine has no GPU: there are 1; start no more processes"):
        processes.own_device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("more", [(), ("--effort", "balanced")])
def test_a_device_that_is_not_there(more: tuple[str, ...], tiny_folder: Path, out: Path) -> None:
    told = refused(ConfigError, "quantize", tiny_folder, out, "--device", "cuda", *more)
    assert told.startswith("device cuda is not available here")
    assert left(out) == []


def test_alone_a_device_is_what_was_said() -> None:
    assert processes.own_device("cuda:3") == "cuda:3"
    with processes.meeting(None, None) as group:
        assert group is None
