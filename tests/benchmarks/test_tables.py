"""The generated tables of README and docs: they are what the results give, and the check notices when they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.common import results
from benchmarks.common.goals import verdict
from benchmarks.common.markdown import filled
from benchmarks.common.results import RESULTS, cpu_name, read, save
from benchmarks.decode import report as decode
from benchmarks.decode.goals import BLOCKS_8B
from benchmarks.ptq.accuracy import accuracy, figure, wikitext2_of_stories

BLOCKS = {"potq pot4": 40.0, "potq pot3": 50.0, "potq pot2": 60.0, "llama.cpp Q4_0": 25.0, "ik_llama.cpp Q4_0": 30.0}


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
    cpu = f"({cpu_name(content['machine'])}, 2 cores)"
    assert f"AVX-512 VNNI {cpu}; AVX2 {cpu}" in decode.speed_table()
    heading, _, first, *others = map(_cells, decode.readme_speed().splitlines())
    assert heading[-1] == f"decode / prompt of 512, tokens/s, AVX2 {cpu}"
    assert (first[0], first[-1]) == ("`pot4`", "100 / 200")
    assert {line[-1] for line in others} == {"- / -"}


def test_a_forced_instruction_set_is_named_in_tables(copied: Path) -> None:
    content = read(copied / "decode.avx2.json")
    save(copied / "decode.avx2.json", content | {"machine": content["machine"] | {"forced_on": "avx512vnni"}})
    assert f"AVX2 forced on AVX-512 VNNI ({cpu_name(content['machine'])}, 2 cores)" in decode.readme_speed()


def test_goals_of_a_kind_of_machine_that_was_never_measured_are_on_the_list(copied: Path) -> None:
    (copied / "decode.avx2.json").unlink()
    listed = [(file, goal["name"]) for file, goal in tables.every_goal() if "llama.cpp's best 4-bit file" in goal["name"]]
    assert ("decode.avx2 (never run)", "AVX2: decode: 4 bits / llama.cpp's best 4-bit file, at least") in listed
    assert not [name for file, name in listed if file.startswith("decode.avx512vnni") and name.startswith("AVX2")]


def test_blocks_of_an_8b_model_have_a_table_and_goals(copied: Path) -> None:
    content = read(copied / "decode.avx2.json")
    for measured in copied.glob("decode_8b.*.json"):
        measured.unlink()
    rows = [
        {"what": "speed", "round": 0, "name": name, "decode": speed, "prefill": 10 * speed} for name, speed in BLOCKS.items()
    ]
    goals = {goal["name"]: goal["measured"] for goal in BLOCKS_8B.goals(rows, "avx2")}
    save(copied / "decode_8b.avx2.json", content | {"rows": rows, "goals": []})
    lines = [_cells(line) for line in decode.document()["8b"].splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines[2:]] == sorted(BLOCKS, key=lambda name: -BLOCKS[name])
    assert lines[2][1:] == ["60", "600", "-"]
    assert goals == {
        "decode: pot3 / pot4, at least": 1.25,
        "decode: pot2 / pot4, at least": 1.5,
        "AVX2: decode: 4 bits / llama.cpp's best 4-bit file, at least": 1.6,  # ik_llama.cpp is a row without a goal
    }


def test_perplexities_stand_beside_the_files_that_were_timed() -> None:
    found = {cells[0]: tuple(cells[1:3]) for cells in map(_cells, decode.readme_speed().splitlines())}
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
