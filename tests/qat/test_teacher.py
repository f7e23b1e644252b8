"""The teacher's predictions on disk: those it makes, the same ones however often the run is killed, read piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from potq.errors import CheckpointError, ConfigError, DataError, ModelError
from potq.nn.losses import TopK, divergence, sparse_divergence
from potq.qat import teacher as module
from potq.qat.teacher import TeacherCache, check_teacher

COUNT, LENGTH, PART = 10, 8, 4
K = 5


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PART_ROWS", PART)


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(260, (COUNT, LENGTH), generator=torch.Generator().manual_seed(0))


def write(teacher: Any, sequences: Tensor, folder: Path, **options: Any) -> TeacherCache:
    return TeacherCache.write(teacher, sequences, folder, **({"top_k": K, "temperature": 2.0, "batch": 3} | options))


def same(one: TopK, other: TopK) -> bool:
    return all(torch.equal(getattr(one, key), getattr(other, key)) for key in ("index", "log_prob", "tail"))


def everything(cache: TeacherCache) -> TopK:
    return cache.rows(torch.arange(len(cache)))


def test_it_holds_what_the_teacher_predicts(tiny_model: Any, sequences: Tensor, tmp_path: Path) -> None:
    tiny_model.train()
    state = torch.get_rng_state()
    cache = write(tiny_model, sequences, tmp_path / "cache", batch=100)
    assert torch.equal(torch.get_rng_state(), state)
    assert tiny_model.training
    with torch.no_grad():
        logits = tiny_model.eval()(sequences).logits
    found, expected = everything(cache), TopK.of(logits, K, 2.0)
    assert (found.index.dtype, found.log_prob.dtype, found.tail.dtype) == (torch.int32, torch.float16, torch.float16)
    assert (found.index.shape, found.tail.shape) == ((COUNT * LENGTH, K), (COUNT * LENGTH,))
    assert (found.index == expected.index).float().mean() > 0.99  # but for ties within rounding
    torch.testing.assert_close(found.log_prob.float(), expected.log_prob, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.tail.float(), expected.tail, rtol=1e-3, atol=1e-5)
    assert sparse_divergence(logits, found, 2.0) < 1e-5


def test_it_is_what_training_needs(tiny_model: Any, sequences: Tensor, tmp_path: Path) -> None:
    cache = write(tiny_model, sequences, tmp_path / "cache", top_k=260, temperature=1.0)
    with torch.no_grad():
        teacher = tiny_model(sequences[[7, 2]]).logits
    student = (teacher + torch.linspace(-1, 1, 260)).requires_grad_()
    found, expected = sparse_divergence(student, cache.rows(torch.tensor([7, 2]))), divergence(student, teacher)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)


def test_rows_come_in_any_order(tiny_model: Any, sequences: Tensor, tmp_path: Path) -> None:
    cache = write(tiny_model, sequences, tmp_path / "cache")
    whole = everything(cache)
    order = torch.tensor([9, 0, 3, 3, 8, 4])
    places = (order[:, None] * LENGTH + torch.arange(LENGTH)).flatten()
    assert same(cache.rows(order), TopK(whole.index[places], whole.log_prob[places], whole.tail[places]))
    assert same(cache[5], cache.rows(torch.tensor([5])))
    assert len(list(cache)) == len(cache) == COUNT
    for missing in (-1, COUNT):
        with pytest.raises(IndexError, match=f"sequence {missing} of {COUNT}"):
            cache[missing]


def test_only_the_files_needed_are_read(tiny_model: Any, sequences: Tensor, tmp_path: Path) -> None:
    cache = write(tiny_model, sequences, tmp_path / "cache")
    expected = cache[5]
    for number in (0, 2):
        (tmp_path / "cache" / f"teacher-{number:05}.safetensors").unlink()
    assert same(cache[5], expected)
    with pytest.raises(CheckpointError, match=r"teacher-00002\.safetensors cannot be read .* computes again"):
        cache[9]


def test_bytes_are_known_beforehand(tiny_model: Any, sequences: Tensor, tmp_path: Path) -> None:
    cache = write(tiny_model, sequences, tmp_path / "cache", top_k=64)
    payload = COUNT * LENGTH * (64 * 6 + 2)
    assert payload < cache.nbytes <= TeacherCache.estimate_bytes(COUNT, LENGTH, 64) < payload + 4096
    assert cache.nbytes == sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.safetensors"))


def test_files_have_a_limit_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PART_ROWS", 256)
    assert [module._part_rows(*sizes) for sizes in ((512, 64), (4096, 64), (4096, 8192))] == [256, 84, 1]


# ---- runs that are killed


def killing(at: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, speed: str) -> None:
        if done >= at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("at", [24, 56, 80])
def test_a_killed_run_goes_on_to_the_same_result(tiny_model: Any, sequences: Tensor, tmp_path: Path, at: int) -> None:
    calls: list[tuple[int, int]] = []
    whole = write(tiny_model, sequences, tmp_path / "whole", progress=lambda done, total, _: calls.append((done, total)))
    assert calls == [(done * LENGTH, COUNT * LENGTH) for done in (3, 4, 7, 8, 10)]
    with pytest.raises(KeyboardInterrupt):
        write(tiny_model, sequences, tmp_path / "killed", progress=killing(at))
    with pytest.raises(CheckpointError, match="cannot be read"):
        TeacherCache.open(tmp_path / "killed", sequences)
    found = (at - 1) // (PART * LENGTH)
    assert len(list((tmp_path / "killed").glob("*.safetensors"))) == found
    calls.clear()
    again = write(tiny_model, sequences, tmp_path / "killed", progress=lambda done, total, _: calls.append((done, total)))
    assert [done for done, _ in calls[:found]] == [PART * LENGTH * part for part in range(1, found + 1)]
    assert len(calls) == found + (5 - 2 * found)
    assert same(everything(again), everything(whole))


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_damaged_file_is_computed_again(tiny_model: Any, sequences: Tensor, tmp_path: Path, harm: str) -> None:
    expected = everything(write(tiny_model, sequences, tmp_path / "cache"))
    file = tmp_path / "cache" / "teacher-00001.safetensors"
    data = file.read_bytes()
    file.unlink()
    if harm == "cut":
        file.write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match=r"teacher-00001\.safetensors cannot be read .*TeacherCache\.write computes"):
        TeacherCache.open(tmp_path / "cache", sequences)
    calls: list[int] = []
    cache = write(tiny_model, sequences, tmp_path / "cache", progress=lambda done, *_: calls.append(done))
    assert calls == [32, 56, 64, 80]
    assert same(everything(cache), expected)


def test_a_finished_cache_needs_no_teacher(tiny_model: Any, sequences: Tensor, tmp_path: Path) -> None:
    cache = write(tiny_model, sequences, tmp_path / "cache", temperature=1.7)
    again = TeacherCache.open(tmp_path / "cache", sequences.int())
    assert again == cache
    assert same(everything(again), everything(cache))
    with pytest.raises(CheckpointError, match="holds predictions for other sequences"):
        TeacherCache.open(tmp_path / "cache", sequences + 1)
    with pytest.raises(CheckpointError, match=r"summary\.safetensors cannot be read"):
        TeacherCache.open(tmp_path / "none", sequences)


@pytest.mark.parametrize("change", ["weights", "sequences", "top_k", "temperature"])
def test_another_run_starts_anew(tiny_model: Any, sequences: Tensor, tmp_path: Path, change: str) -> None:
    write(tiny_model, sequences, tmp_path / "cache")
    options: dict[str, Any] = {}
    if change == "weights":
        tiny_model.model.norm.weight.data *= 1.5
    elif change == "sequences":
        sequences = sequences.flip(0)
    else:
        options = {change: 3}
    with pytest.warns(UserWarning, match="was left by another run"):
        cache = write(tiny_model, sequences, tmp_path / "cache", **options)
    assert same(everything(cache), everything(write(tiny_model, sequences, tmp_path / "fresh", **options)))


def test_another_batch_size_goes_on(tiny_model: Any, sequences: Tensor, tmp_path: Path) -> None:
    """As one wants after running out of memory."""
    with pytest.raises(KeyboardInterrupt):
        write(tiny_model, sequences, tmp_path / "cache", progress=killing(56))
    calls: list[int] = []
    write(tiny_model, sequences, tmp_path / "cache", batch=1, progress=lambda done, *_: calls.append(done))
    assert calls == [32, *range(40, 81, 8)]


# ---- what is refused


def test_a_full_disk_is_noticed_before_any_work(
    tiny_model: Any, sequences: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = TeacherCache.estimate_bytes(COUNT, LENGTH, K)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    message = r"no room for the teacher's predictions in .*cache: they need about 0\.0 MB, 0\.0 MB are free; use"
    with pytest.raises(CheckpointError, match=message):
        write(tiny_model, sequences, tmp_path / "deep" / "cache")
    assert not (tmp_path / "deep").exists()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    write(tiny_model, sequences, tmp_path / "cache")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=2000))
    write(tiny_model, sequences, tmp_path / "cache")  # what is there needs no more room


def test_nan_is_refused(tiny_model: Any, sequences: Tensor, tmp_path: Path) -> None:
    tiny_model.model.norm.weight.data[3] = math.nan
    with pytest.raises(ModelError, match="the teacher's output is NaN; try dtype float32"):
        write(tiny_model, sequences, tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 261}, r"invalid top_k 261 for a vocabulary of 260 tokens; use 1\.\.260"),
        ({"top_k": 0}, "invalid top_k 0"),
        ({"temperature": 0.0}, r"invalid temperature 0\.0; use a positive number"),
        ({"temperature": math.nan}, "temperature"),
        ({"batch": 0}, "invalid batch size 0"),
    ],
)
def test_settings_that_cannot_be(
    tiny_model: Any, sequences: Tensor, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write(tiny_model, sequences, tmp_path / "cache", **options)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (torch.zeros(3, dtype=torch.long), "sequences must be an"),
        (torch.zeros(0, 8, dtype=torch.long), "sequences must be an"),
        (torch.zeros(3, 8), "sequences must be an"),
        (torch.zeros(3, 129, dtype=torch.long), "windows of 129 tokens exceed the model's limit of 128"),
        (torch.full((3, 8), 260), r"the text holds token ids 260\.\.260, the model knows 0\.\.259; use its own tokenizer"),
        (torch.full((3, 8), -1), "token ids -1"),
    ],
)
def test_sequences_that_cannot_be_read(tiny_model: Any, tmp_path: Path, sequences: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write(tiny_model, sequences, tmp_path / "cache")


def test_a_teacher_of_other_tokens_is_refused(tiny_model: Any, packed_model: Any) -> None:
    check_teacher(packed_model, tiny_model)
    tiny_model.resize_token_embeddings(264)
    with pytest.raises(ModelError, match="the student's vocabulary has 260 tokens, the teacher's 264; use a teacher with"):
        check_teacher(packed_model, tiny_model)
