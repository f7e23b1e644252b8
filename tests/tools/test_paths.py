"""Scripts that seldom run name files: each must be there after files have moved."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [ROOT / "Makefile", ROOT / ".ci/run", *ROOT.glob("tools/*.sh"), *ROOT.glob("csrc/tests/**/*.sh")]
_PATH = re.compile(r"(?<![\w./$-])(?:tests|tools|benchmarks|examples|csrc)/[\w./-]*[\w-]")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_paths_in_scripts_exist(script: Path) -> None:
    named = set(_PATH.findall(script.read_text(encoding="utf-8")))
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]
