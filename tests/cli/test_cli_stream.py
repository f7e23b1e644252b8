"""``potq quantize`` block by block: asked for, or because the model does not fit in memory."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from torch import Tensor

import potq
from cli_helpers import invoke, refused
from potq import resume
from potq.checkpoint import memory
from potq.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = ["--effort", "gptq", "calibration.window=32", "calibration.windows=2"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that the tiny model does not fit in."""
    monkeypatch.setattr(memory, "memory_available", lambda: 1_500_000_000)


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_streamed_or_not_the_folder_is_the_same(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    folders = []
    for option in ("--stream", "--no-stream"):
        out = tmp_path / option / "out"
        result = invoke("quantize", tiny_folder, out, "--calibration", text, option, *FEW)
        assert result.exit_code == 0, result.exception
        assert "streaming it" not in result.stderr  # it was asked for
        assert [each.name for each in out.parent.iterdir()] == ["out"]
        folders.append(_files(out))
    assert folders[0] == folders[1]


@pytest.mark.usefixtures("small")
def test_what_does_not_fit_is_streamed_and_said_so(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    seen = []

    def load(*args: object, **options: object) -> object:
        seen.append(options["stream"])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("potq.checkpoint.loading.load", load)
        told = invoke("quantize", tiny_folder, tmp_path / "out", "--calibration", text, *FEW).stderr
        invoke("quantize", tiny_folder, tmp_path / "out", "--calibration", text, "--no-stream", *FEW)
    assert seen == [True, False]
    told = " ".join(told.split())
    assert "needs about 2.1 GB of memory as a whole, 1.5 GB are available: streaming it block by block" in told


def test_what_fits_is_loaded_as_a_whole(
    tiny_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_available", lambda: 3_000_000_000)
    monkeypatch.setattr("potq.checkpoint.parts.read_in_parts", lambda *args: pytest.fail("streamed"))
    result = invoke("quantize", tiny_folder, tmp_path / "out", "--calibration", text, *FEW)
    assert result.exit_code == 0, result.exception


def test_best_says_that_it_goes_by_blocks(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    few = ["calibration.window=32", "calibration.windows=2", "--stream", "--effort", "best"]
    result = invoke("quantize", tiny_folder, tmp_path / "out", "--calibration", text, *few)
    assert result.exit_code == 0, result.exception
    assert "becomes one of each block (scope block)" in " ".join(result.stderr.split())
    assert "refined block by block" in " ".join(result.stdout.split())
    assert potq.load(tmp_path / "out").quant_report.modules[1].algorithm == "gptq+descent+block"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stream"], "change nothing without an effort that calibrates"),
        (["--no-stream", "--effort", "fast"], "change nothing without an effort that calibrates"),
        (["--stream", "--effort", "balanced"], "name a text with --calibration"),
        (["--stream", "--calibration", "TEXT", "--budget", "3.5"], "need gradients of the whole model"),
        (["--stream", "--calibration", "TEXT", "--device", "cpu"], "leave out --device, or torchrun"),
    ],
)
def test_wishes_that_cannot_be(words: list[str], message: str, tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    words = [str(text) if word == "TEXT" else word for word in words]
    assert message in refused(ConfigError, "quantize", tiny_folder, tmp_path / "out", *words)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--effort", "balanced"], "name a text with --calibration"),
        (["--effort", "balanced", "--budget", "3.5", "--calibration", "TEXT"], "leave out budget and candidates"),
    ],
)
def test_what_neither_fits_nor_streams(words: list[str], remedy: str, tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    words = [str(text) if word == "TEXT" else word for word in words]
    message = refused(ConfigError, "quantize", tiny_folder, tmp_path / "out", *words)
    assert f"block by block, {remedy}" in message
    assert "--no-stream" in message


def test_a_full_disk_keeps_what_was_finished(
    tiny_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = resume.save_file

    def full(tensors: dict[str, Tensor], file: Path) -> None:
        if file.stem == "block-0001":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, file)

    monkeypatch.setattr(resume, "save_file", full)
    result = invoke("quantize", tiny_folder, tmp_path / "out", "--calibration", text, "--stream", *FEW)
    assert "cannot be written" in str(result.exception)
    assert "make room, and run again" in str(result.exception)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.work" / "block-0000.safetensors").is_file()
