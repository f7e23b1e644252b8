"""One version: every other place that states it agrees with src/potq/version.py."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import yaml

import potq

ROOT = Path(__file__).parents[1]


def test_the_citation_names_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == potq.__version__


def test_the_changelog_begins_with_this_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) \((?:unreleased|\d{4}-\d{2}-\d{2})\)$", changes, re.MULTILINE)
    assert newest is not None
    assert newest[1] == potq.__version__


def test_the_installed_package_has_this_version() -> None:
    assert version("potq") == potq.__version__
