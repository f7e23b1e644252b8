"""What two processes exchange, and that nothing is exchanged by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException

import ranks_helpers
from potq.data.ranks import ALONE, SharedFolder
from ranks_helpers import noise

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two left what they found; the second one was killed."""
    folder = tmp_path_factory.mktemp("exchanged")
    together = multiprocessing.spawn(ranks_helpers.exchange, (folder,), nprocs=2, join=False)
    first, _ = together.processes
    first.join(120)  # it ends by itself, whatever became of the other
    assert first.exitcode == 0
    with pytest.raises(ProcessExitedException, match="process 1 terminated with signal SIGKILL"):
        together.join()
    return folder


@pytest.fixture
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@needs_gloo
def test_sums_are_the_same_everywhere(found: list[dict[str, Any]]) -> None:
    assert torch.equal(found[0]["sum"], noise(0) + noise(1))
    assert torch.equal(found[1]["sum"], found[0]["sum"])


@needs_gloo
def test_parts_of_any_length_become_a_whole(found: list[dict[str, Any]]) -> None:
    matrix = torch.arange(10.0).view(5, 2).half()
    for each in found:
        assert torch.equal(each["whole"], matrix)
        assert torch.equal(each["few"], matrix[:1])
        assert [part.tolist() for part in each["parts"]] == [[], [[1, 1]]]
        assert each["values"] == [{"rank": 0, "list": [0.0]}, {"rank": 1, "list": [0.1]}]
        assert torch.equal(each["first"]["a"], matrix)
        assert each["first"]["b"].item() == 7
        assert each["none"] is None
    assert [each["share"] for each in found] == [["a", "c", "e"], ["b", "d"]]


@needs_gloo
def test_what_differs_is_named(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["error"].startswith(
            "process 1 of 2 disagrees with process 0 in two (y1 there, y0 in process 0); start all"
        )


@needs_gloo
def test_a_process_that_was_killed(folder: Path) -> None:
    told = (folder / "lost").read_text()
    assert told.startswith("process 0 of 2 waited in vain for the others: one of them has stopped")


def test_alone_nothing_is_exchanged(tmp_path: Path) -> None:
    matrix = torch.randn(3, 2)
    assert (ALONE.size, ALONE.rank, ALONE.leads) == (1, 0, True)
    assert ALONE.rows(3) == slice(0, 3)
    for same in (ALONE.sum(matrix), ALONE.whole(matrix, 3), *ALONE.parts(matrix)):
        assert same is matrix
    assert ALONE.values([1]) == [[1]]
    assert ALONE.first(lambda: None) is None
    ALONE.agree({"one": "x"})
    folder = SharedFolder(tmp_path / "work", "a", ALONE)
    folder.save("part", {"matrix": matrix})
    again = SharedFolder(tmp_path / "work", "a", ALONE).load("part")
    assert again is not None
    assert torch.equal(again["matrix"], matrix)
