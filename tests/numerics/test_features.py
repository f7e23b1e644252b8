"""Features of the checkpoint format: which a config uses, and how an unknown one is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from potq import PRESETS, PoTConfig, QuantScheme
from potq.errors import CheckpointError
from potq.numerics.features import FEATURES, features_of, require_readable

ROOT = Path(__file__).parents[2]
ROW_SCALES = QuantScheme("pot4", scale_dtype="e8m0", row_scale=True)


@pytest.mark.parametrize(
    ("scheme", "features"),
    [
        (PRESETS["pot4"], []),
        (PRESETS["int8"], []),
        (QuantScheme("pot2", group_size="row"), []),
        *((QuantScheme(f"pot{bits}"), ["bit-planes"]) for bits in (3, 5, 6, 7)),
        (PRESETS["mxfp4"], ["e8m0-scales"]),
        (ROW_SCALES, ["e8m0-scales", "row-scales"]),
        (QuantScheme("int4", signed_scale=True), ["signed-scales"]),
        (PRESETS["nf4"], ["table-grids"]),
        (PRESETS["pot3s"], ["bit-planes", "signed-scales", "table-grids"]),
        (QuantScheme("int8", group_size="tensor"), ["tensor-scales"]),
        (QuantScheme("pot2t"), ["trellis"]),
        (QuantScheme("apot3t"), ["bit-planes", "trellis"]),
    ],
)
def test_features_of_a_scheme(scheme: QuantScheme, features: list[str]) -> None:
    assert features_of([scheme]) == features


def test_a_config_lists_the_features_of_all_its_schemes() -> None:
    assert PoTConfig("pot4").to_dict()["features"] == []
    assert PoTConfig("pot4", embedding="none").to_dict()["features"] == []
    config = PoTConfig("pot4", embedding="mxfp4", targets={"q_proj": "nf4", "k_proj": "pot3"})
    assert config.to_dict()["features"] == ["bit-planes", "e8m0-scales", "table-grids"]
    assert config.to_diff_dict() == config.to_dict()  # what transformers writes


def test_names_are_words_in_order() -> None:
    assert list(FEATURES) == sorted(FEATURES)
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) for name in FEATURES)


def test_the_documented_table_is_this_one() -> None:
    page = (ROOT / "docs/format.md").read_text(encoding="utf-8")
    section = page.partition("## Features")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{name}` | {feature.meaning} | {feature.since} |" for name, feature in FEATURES.items()]


def test_the_engine_knows_the_same() -> None:
    code = (ROOT / "csrc/engine/scheme.cpp").read_text(encoding="utf-8")
    (listed,) = re.findall(r"kFeatures\[\] = \{(.*?)\}", code, re.DOTALL)
    assert re.findall('"(.*?)"', listed) == list(FEATURES)


@pytest.mark.parametrize("fields", [{}, {"version": 1}, {"features": []}, {"features": ["table-grids", "bit-planes"]}])
def test_what_is_readable(fields: dict[str, Any]) -> None:
    require_readable(fields, "config.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "x/config.json is of format version 2, this potq reads version 1; upgrade potq"),
        ({"version": 2, "features": ["hashing"]}, "x/config.json is of format version 2"),
        ({"features": ["bit-planes", "hashing", "more"]}, "x/config.json uses the feature 'hashing', which this potq"),
        ({"features": ["hashing"], "scheme": 3}, "x/config.json uses the feature 'hashing'"),
        ({"features": "bit-planes"}, "x/config.json: features is not a list of names; the file is damaged"),
        ({"features": None}, "x/config.json: features is not a list of names"),
        ({"features": [["bit-planes"]]}, "x/config.json: features is not a list of names"),
    ],
)
def test_what_is_not(fields: dict[str, Any], message: str) -> None:
    for refuse in (require_readable, PoTConfig.from_dict):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            refuse(fields, Path("x/config.json"))
