"""What commands say on stderr while they work, where that is no terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from potq.cli import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    # a clock of its own: an event loop of another test's server would wait for hours under the module's
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_every_tenth_where_that_takes_more_than_ten_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress_bar("quantizing") as update:
        for done in range(1, 101):
            clock[0] = 6.0 * done
            update(done * 1_000_000, 100_000_000, f"layer {done}")
    shown = lines(capsys)
    assert len(shown) == 10
    assert shown[0] == "quantizing: 10%, 10.0M/100.0M in 60 s, about 9 min left layer 10"
    assert shown[-1] == "quantizing: 100%, 100.0M/100.0M in 10 min layer 100"


def test_a_line_every_ten_seconds_where_the_work_is_quick(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("perplexity") as update:
        for done in range(1, 41):
            clock[0] = 0.8 * done
            update(done, 40, "")
    assert [line.split(" in ")[0] for line in lines(capsys)] == [
        "perplexity: 32%, 13/40",
        "perplexity: 65%, 26/40",
        "perplexity: 98%, 39/40",
    ]


def test_work_that_is_over_in_ten_seconds_is_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("quantizing") as update:
        for done in range(11):
            clock[0] = 0.9 * done
            update(done, 10, "")
    assert lines(capsys) == []


def test_other_work_under_the_same_label_begins_anew(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A comparison quantizes, then measures; a whole model's refinement counts steps."""
    with console.progress_bar("pot4") as update:
        for moment, done, total in ((0, 0, 100), (60, 90, 100), (70, 1, 8), (100, 4, 8)):
            clock[0] = moment
            update(done, total, "")
    assert [re.sub(" left $", " left", line) for line in lines(capsys)] == [
        "pot4: 90%, 90/100 in 60 s, about 7 s left",
        "pot4: 50%, 4/8 in 30 s, about 40 s left",
    ]


def test_a_forecast_from_the_first_steps(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """The first step, which loads kernels, says nothing of the others."""
    seen: list[tuple[int, int, str]] = []
    tell = console.Forecast("calibration text", lambda *call: seen.append(call))
    for step in range(1, 101):
        clock[0] = 4.0 + 0.5 * step
        tell(step, 100, "")
    assert lines(capsys) == ["calibration text: about 54 s"]
    assert seen == [(step, 100, "") for step in range(1, 101)]
    for step in range(1, 101):  # over in two seconds
        clock[0] += 0.01
        tell(step, 100, "")
    assert lines(capsys) == []


def test_a_redirected_quantize_is_not_silent(tiny_folder: Path, tmp_path: Path) -> None:
    """By weights: when the embedding is done, a sixth of the model is."""
    code = "from potq.cli import console; console._SECONDS = 0; from potq.cli.app import main; main()"
    words = ["quantize", str(tiny_folder), str(tmp_path / "out"), "--effort", "fast"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    shown = [line for line in done.stderr.splitlines() if line.startswith("quantizing: ")]
    assert 4 <= len(shown) <= 10
    shares = [int(re.findall(r"(\d+)%", line)[0]) for line in shown]
    assert shares == sorted(shares)
    steps = re.findall(r" (\d+)/(\d+|0\.1M) ", "\n".join(shown))
    assert all(abs(int(count) / 102_656 - share / 100) < 0.006 for (count, _), share in zip(steps, shares, strict=True))


def test_a_name_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A dataset's name may look like an emoji's, or like markup."""
    console.note("no/such:x:train [red]")
    console.stdout().print("no/such:x:train [red]")
    out, err = capsys.readouterr()
    assert (out, err) == ("no/such:x:train [red]\n",) * 2


def test_a_note_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.note(words := "quantizing: 63% " + "of a long name " * 20)
    assert lines(capsys) == [words]
