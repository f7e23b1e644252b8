"""The generated tables of README and docs: they are what the results give, and the check notices when they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.common import results
from benchmarks.common.goals import verdict
from benchmarks.common.markdown import filled
from benchmarks.common.results import RESULTS, read, save
from benchmarks.decode import report as decode
from benchmarks.ptq.accuracy import accuracy, figure, wikitext2_of_stories


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The results in a folder of the test's."""
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder, ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr(results, "RESULTS", folder)
    return folder


def test_tables_are_current() -> None:
    assert tables.update(write=False) == [], "run make tables"


def test_a_goal_that_its_rows_do_not_give_is_noticed(copied: Path) -> None:
    path = copied / "engine_agreement.json"
    content = read(path)
    content["goals"][0]["met"] = not content["goals"][0]["met"]
    save(path, content)
    assert list(tables.stale_results(write=False)) == [path]
    assert list(tables.stale_results(write=True)) == [path]
    assert list(tables.stale_results(write=False)) == []


def test_a_table_that_its_results_do_not_give_is_noticed(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- mark -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    assert filled(document, {"mark": "new"}) == "before\n<!-- mark -->\nnew\n<!-- end -->\nafter\n"
    with pytest.raises(SystemExit, match="no lines '<!-- other -->' and '<!-- end -->'"):
        filled(document, {"other": "new"})


def test_the_page_of_goals_has_every_goal_missed_ones_first() -> None:
    page = tables.goals_page()
    for path, goal in tables.every_goal():
        assert f"`{path}`" in page
        assert f"| {goal['name']} |" in page
    assert page.index("## Missed") < page.index("## Not measured") < page.index("## Met")
    assert page.count("| **missed** |") == sum(verdict(goal) == "missed" for _, goal in tables.every_goal())


def test_speeds_of_another_machine_stand_apart(copied: Path) -> None:
    content = read(copied / "decode.avx512vnni.json")
    slower = [row | {"decode": 100.0, "prefill": 200.0} for row in content["rows"] if row["name"] == "potq pot4"]
    save(copied / "decode.avx2.json", content | {"machine": content["machine"] | {"isa": "avx2"}, "rows": slower})
    line = next(line for line in decode.speed_table().splitlines() if line.startswith("| potq pot4 |"))
    assert _cells(line)[-2:] == ["100", "200"]
    assert "AVX-512 VNNI (AMD EPYC, 2 cores); AVX2 (AMD EPYC, 2 cores)" in decode.speed_table()
    last = decode.readme_speed().splitlines()[-1]
    assert _cells(last) == ["prompt of 512, tokens/s, AVX2 (AMD EPYC, 2 cores)", "200", *["-"] * 7]


def test_perplexities_stand_beside_the_files_that_were_timed() -> None:
    names, _, rounded, calibrated, *_ = map(_cells, decode.readme_speed().splitlines())
    found = dict(zip(names, zip(rounded, calibrated, strict=True), strict=True))
    assert found["`apot4`"] == ("37.05", "29.44")
    assert found["`pot3`"] == ("589", "114")
    assert found["llama.cpp IQ4_NL"] == ("31.46", "-")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_what_nothing_has_measured_is_marked() -> None:
    lines = {line.split("|")[1].strip(): line for line in accuracy().splitlines()}
    assert _cells(lines["`pot3nz`"])[2:4] == ["6,269", "-"]
    assert all(all(_cells(line)) for line in lines.values())
    assert len(wikitext2_of_stories().splitlines()) == 2 + 11


def test_figures_are_as_precise_as_they_are_worth() -> None:
    found = [figure(perplexity) for perplexity in (None, 31.994, 589.4, 105_826.4, 6.17e6)]
    assert found == ["-", "31.99", "589", "105,826", "6.2 million"]
