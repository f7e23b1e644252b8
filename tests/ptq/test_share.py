"""Processes that share a calibrated run end with the same bits every time, and with what one process finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

import potq
import ranks_helpers
from plain_helpers import net_inputs, trained_net
from potq.data.calibration_text import load_calibration
from potq.data.ranks import ALONE
from potq.errors import ConfigError
from potq.ptq.blocks import merge
from potq.ptq.chain import agreed_lists
from potq.ptq.feed import Feed
from potq.ptq.share import Share, check_shared
from ranks_helpers import EFFORTS, PROCESSES, of_other_number, quantized, windows

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


class Two:
    """Stands for the second of two processes where nothing is sent."""

    size, rank = 2, 1


@pytest.fixture(scope="module")
def results(_tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Where two processes worked, and what each found."""
    folder = tmp_path_factory.mktemp("shared")
    multiprocessing.spawn(ranks_helpers.work, (_tiny_source, folder), nprocs=PROCESSES)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.fixture
def found(results: tuple[Path, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return results[1]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = other["tensors"]
    equal = all(torch.equal(tensor, tensors[name]) for name, tensor in one["tensors"].items())
    return equal and one["tensors"].keys() == tensors.keys() and one["entries"] == other["entries"]


# ---- who has what


def test_every_window_is_somebodys() -> None:
    batches = [torch.arange(count * 300).view(count, 300) for count in (3, 1)] + [torch.zeros(1, 5).long()]
    shares = [Share.of(batches, _place(rank), refined=True) for rank in range(2)]
    merged = merge(batches)
    assert [share.steps for share in shares] == [len(merged)] * 2 == [3, 3]
    for step, batch in enumerate(merged):
        parts = [(share.batches[share.own[step][0]], share.own[step][1]) for share in shares if step in share.own]
        assert sum(part for _, part in parts) == 1
        assert sorted(map(str, torch.cat([rows for rows, _ in parts]))) == sorted(map(str, batch))
    counts = [sum(map(len, share.batches)) for share in shares]
    assert counts in ([3, 2], [2, 3])


def test_alone_a_process_has_all() -> None:
    share = Share.of(windows(), ALONE, refined=True)
    assert all(torch.equal(a, b) for a, b in zip(share.batches, merge(windows()), strict=True))
    assert share.own == {0: (0, 1.0), 1: (1, 1.0)}


def test_without_refinement_batches_are_as_large_as_alone() -> None:
    batches = list(torch.zeros(8, 512).long().split(1))
    assert [batch.shape for batch in Share.of(batches, _place(0), refined=False).batches] == [(2, 512)] * 2
    assert [batch.shape for batch in Share.of(batches, _place(0), refined=True).batches] == [(1, 512)] * 4


def _place(rank: int) -> Any:
    place = Two()
    place.rank = rank
    return place


# ---- what comes out


@needs_gloo
def test_the_same_number_of_processes_gives_the_same_bits(found: list[dict[str, Any]]) -> None:
    assert same(found[0]["balanced"], found[0]["again"])
    for effort in EFFORTS:
        assert same(found[0][effort], found[1][effort])


@needs_gloo
@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.usefixtures("one_thread")
def test_one_process_finds_the_same(effort: str, found: list[dict[str, Any]], tiny_folder: Path) -> None:
    alone, shared = quantized(tiny_folder, effort), found[0][effort]
    _close(alone, shared)
    assert not same(alone, quantized(tiny_folder, effort, text=windows(1)))  # the text does matter


def _close(alone: dict[str, Any], shared: dict[str, Any]) -> None:
    """A code in the middle between two levels may go either way, and what comes after it makes up for that."""
    assert alone["entries"].keys() == shared["entries"].keys()
    for name, (algorithm, *errors) in alone["entries"].items():
        assert shared["entries"][name][0] == algorithm
        assert shared["entries"][name][1:] == pytest.approx(tuple(errors), abs=0.3), name
    for layer in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        name = f"model.layers.0.{layer}.weight_packed"
        differs = alone["tensors"][name] != shared["tensors"][name]
        assert differs.float().mean() <= 0.02, layer


@needs_gloo
@pytest.mark.usefixtures("one_thread")
def test_what_is_outside_the_blocks_is_shared_by_rows(found: list[dict[str, Any]], tiny_folder: Path) -> None:
    """Rows do not depend on one another, so not a bit differs; the error is a sum, in another order."""
    alone, shared = quantized(tiny_folder, "balanced"), found[0]["balanced"]
    names = [name for name in alone["tensors"] if name.startswith("model.embed_tokens.")]
    assert {name.rpartition(".")[2] for name in names} >= {"weight_packed", "weight_scale"}
    assert all(torch.equal(alone["tensors"][name], shared["tensors"][name]) for name in names)
    (algorithm, snr, _), (other, other_snr, _) = (each["entries"]["model.embed_tokens"] for each in (alone, shared))
    assert (other, other_snr) == (algorithm, pytest.approx(snr, rel=1e-9))


@needs_gloo
@pytest.mark.usefixtures("one_thread")
def test_row_scales(found: list[dict[str, Any]], tiny_folder: Path) -> None:
    alone = quantized(tiny_folder, "balanced", None, "pot3:scale_dtype=e8m0:row_scale=true")
    _close(alone, found[0]["row scales"])


@needs_gloo
@pytest.mark.usefixtures("one_thread")
def test_inputs_of_a_plain_module(found: list[dict[str, Any]]) -> None:
    alone, shared = ranks_helpers.module(), found[0]["module"]
    assert same(shared, found[1]["module"])
    for name, (algorithm, *errors) in alone["entries"].items():
        assert shared["entries"][name][0] == algorithm
        assert shared["entries"][name][1:] == pytest.approx(tuple(errors), abs=0.3), name
    assert shared["entries"] != ranks_helpers.module(calibration=net_inputs(5, 1)[::2])["entries"]  # a half would not do


@needs_gloo
@pytest.mark.usefixtures("one_thread")
def test_experts_that_few_tokens_reach(found: list[dict[str, Any]]) -> None:
    alone, shared = ranks_helpers.experts(), found[0]["experts"]
    assert same(shared, found[1]["experts"])
    assert any("no text reaches it" in algorithm for algorithm, _ in alone["entries"].values())
    for name, (algorithm, snr) in alone["entries"].items():
        assert shared["entries"][name] == (algorithm, pytest.approx(snr, abs=0.3)), name


@needs_gloo
@pytest.mark.usefixtures("one_thread")
def test_text_that_the_model_writes(found: list[dict[str, Any]], tiny_model: Any) -> None:
    expected = torch.cat(load_calibration("self", tiny_model, window=12, windows=5, batch=2))
    assert all(torch.equal(each["written"], expected) for each in found)


# ---- a run that was killed


@needs_gloo
def test_a_killed_run_goes_on(found: list[dict[str, Any]]) -> None:
    for rank, each in enumerate(found):
        resumed = each["resumed"]
        assert same(resumed, each["model"])
        assert resumed["there"] == (rank == 0)  # the first keeps it
        assert not any(name.startswith("model.layers.0.") for name in resumed["began"])
        assert any(name.startswith("model.layers.1.") for name in resumed["began"])


@needs_gloo
def test_work_of_another_number_of_processes_is_not_used(
    results: tuple[Path, list[dict[str, Any]]], tiny_folder: Path
) -> None:
    told = of_other_number(tiny_folder, results[0] / "work")
    assert any("another run" in message and "starting anew" in message for message in told), told


def test_blocks_that_inputs_run_in_several_ways() -> None:
    found: Any = ([["blocks.0", "blocks.1"]], [])
    other: Any = _place(0)
    other.values = lambda mine: [mine, [[["blocks.0"]], []]]
    lists, remarks = agreed_lists(found, other)
    assert lists == [[""]]
    assert "its inputs run it in several ways" in remarks[0]
    other.values = lambda mine: [mine, mine]
    assert agreed_lists(found, other) == found


# ---- what is refused


@needs_gloo
def test_disagreement_is_an_error_everywhere(found: list[dict[str, Any]]) -> None:
    for each in found:
        text, seed, few, effort = (each["errors"][name] for name in ("text", "seed", "few", "effort"))
        assert text.startswith("DistributedError: process 1 of 2 disagrees with process 0 in the calibration (")
        assert effort.startswith("ConfigError: 2 processes share the calibration of blocks, and effort='fast' has none;")
        assert seed.startswith("DistributedError: process 1 of 2 disagrees with process 0 in the config (")
        assert few.startswith("DataError: 2 processes share 1 windows or inputs of calibration, and each needs one;")


def test_what_a_callable_runs_is_not_shared() -> None:
    two: Any = _place(0)
    config = potq.PoTConfig("pot4", effort="balanced")
    with pytest.raises(ConfigError, match="2 processes share inputs, and not what a callable runs; give a list"):
        check_shared(two, trained_net(), config, Feed.of(lambda module: None), [])
