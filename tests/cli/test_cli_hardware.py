"""``potq hardware``: folders of SystemVerilog; what is wrong is said before the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_helpers import refused, succeed
from potq.cli.hardware import Structures
from potq.errors import CheckpointError, ConfigError, MissingDependencyError
from potq.hardware.rtl.product import STRUCTURES


def test_every_structure_can_be_asked_for() -> None:
    assert tuple(Structures) == STRUCTURES


def test_rtl_writes_a_folder_and_says_how_to_test_it(tmp_path: Path) -> None:
    said = succeed("hardware", "rtl", "--scheme", "pot3s", "-o", tmp_path / "rtl")
    assert "structure shift, 16 lanes" in said
    assert "--top-module pot3s_g64_testbench" in said
    assert (tmp_path / "rtl" / "pot3s_g64_dot.sv").exists()


def test_rtl_json(tmp_path: Path) -> None:
    words = ["--structure", "booth", "--activation-bits", "4", "--lanes", "8", "--json"]
    found = json.loads(succeed("hardware", "rtl", "--scheme", "int4:group_size=32", "-o", tmp_path / "rtl", *words))
    assert (found["structure"], found["lanes"], found["sum_bits"]) == ("booth", 8, 13)
    assert found == json.loads((tmp_path / "rtl" / "design.json").read_text())


def test_rtl_refuses(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "not an empty folder" in refused(CheckpointError, "hardware", "rtl", "--scheme", "pot3", "-o", tmp_path)
    words = ["hardware", "rtl", "-o", tmp_path / "rtl", "--scheme"]
    assert "pot3-row: the accumulator" in refused(ConfigError, *words, "pot3:group_size=row")
    assert "cannot multiply" in refused(ConfigError, *words, "apot4", "--structure", "shift")
    assert not (tmp_path / "rtl").exists()


def test_report_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refused(MissingDependencyError, "hardware", "report", "smollm2", "--text", "pydoc")
    assert "apt-get install yosys opensta" in said
    assert "invalid --activation-bits 8,x" in refused(
        ConfigError, "hardware", "report", "smollm2", "--text", "pydoc", "--activation-bits", "8,x"
    )
