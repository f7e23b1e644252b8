"""Schemes and configs: presets, overrides, refusals that name the key, the JSON form, and pattern matching."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from potq.config import PoTConfig, matches
from potq.errors import CheckpointError, ConfigError
from potq.numerics.grid import pot, table
from potq.numerics.scheme import PRESETS, QuantScheme, packed_row_bytes, plane_widths


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_by_name_is_the_preset(name: str) -> None:
    assert QuantScheme(name) == PRESETS[name]
    assert PoTConfig(name).scheme == PRESETS[name]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_the_designs_groups_and_scales(name: str) -> None:
    expected = (32 if name.startswith("mx") or name == "iq4nl" else 64, "e8m0" if name.startswith("mx") else "float16")
    assert (PRESETS[name].group_size, PRESETS[name].scale_dtype) == expected
    assert PRESETS[name].rounding == "nearest"


@pytest.mark.parametrize("kind", [QuantScheme, PoTConfig])
def test_unknown_preset_lists_the_valid_ones(kind: type[QuantScheme] | type[PoTConfig]) -> None:
    with pytest.raises(ConfigError, match="'pot99'") as error:
        kind("pot99")
    assert all(name in str(error.value) for name in PRESETS)


def test_keywords_override_the_preset() -> None:
    scheme = QuantScheme("mxfp4", group_size="row", scale_dtype="float16", rounding="nearest")
    assert (scheme.grid, scheme.group_size, scheme.scale_dtype) == (PRESETS["mxfp4"].grid, "row", "float16")
    assert QuantScheme("pot4", grid="pot3") == PRESETS["pot3"]
    assert QuantScheme(grid=pot(4)) == PRESETS["pot4"]


def test_config_keywords_override_the_scheme() -> None:
    config = PoTConfig("pot4", group_size=32, scale_dtype="e8m0", ignore=["lm_head"], scale_candidates=3)
    assert config.scheme == QuantScheme("pot4", group_size=32, scale_dtype="e8m0")
    assert (config.ignore, config.scale_candidates) == (("lm_head",), 3)


def test_config_defaults() -> None:
    config = PoTConfig("pot4")
    assert config.embedding == PRESETS["int8"]
    assert (config.targets, config.ignore, config.scale_method, config.scale_candidates) == ({}, (), "mse", None)
    assert (config.quant_method, config.version) == ("potq", 1)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"bits": 3}, "bits"),
        ({"groupsize": 3}, "groupsize"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": -64}, "group_size"),
        ({"group_size": "column"}, "group_size"),
        ({"group_size": 1.5}, "group_size"),
        ({"scale_dtype": "bfloat16"}, "scale_dtype"),
        ({"rounding": "up"}, "rounding"),
        ({"row_scale": 3}, "row_scale"),
        ({"row_scale": True}, ".*row_scale=True needs scale_dtype='e8m0'"),
        ({"row_scale": True, "scale_dtype": "e8m0", "group_size": "tensor"}, ".*row_scale=True needs groups within a row"),
        ({"grid": {"bits": 2, "magnitudes": (1, 2), "extra": 1}}, r"grid(\.|: invalid Grid:\n  )extra: unknown key"),
        ({"grid": {"bits": 2, "magnitudes": (2, 1)}}, "grid"),
    ],
)
def test_scheme_refuses_and_names_the_key(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"\n  {key}"):
        QuantScheme("pot4", **fields)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"groups": 3}, "groups: unknown key"),
        ({"version": 2}, "version: Input should be 1"),
        ({"quant_method": "gptq"}, "quant_method"),
        ({"scale_method": "best"}, "scale_method"),
        ({"scale_candidates": 0}, "scale_candidates"),
        ({"scale_candidates": 4097}, "scale_candidates"),
        ({"ignore": ["(", "ok"]}, r"ignore: .*'\(' is not a regular expression"),
        ({"ignore": 3}, "ignore"),
        ({"rounding": "up"}, "rounding"),
        ({"targets": {"[": "pot3"}}, r"targets: .*'\[' is not a regular expression"),
        ({"targets": {"a": "pot99"}}, r"targets: .*unknown preset 'pot99'"),
        ({"targets": {"a": {"preset": "pot3", "sizes": 3}}}, r"targets: .*(\n.*)?sizes: unknown key"),
        ({"targets": ["a"]}, "targets"),
        ({"embedding": {"preset": "pot99"}}, r"embedding: .*unknown preset 'pot99'"),
        ({"embedding": 4}, "embedding"),
    ],
)
def test_config_refuses_and_names_the_key(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"\n  {key}"):
        PoTConfig("pot4", **fields)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        PoTConfig("pot4", one=1, two=2, version=7)
    assert all(f"\n  {key}: " in str(error.value) for key in ("one", "two", "version"))


def test_a_pattern_that_only_fails_inside_the_match_is_refused_early() -> None:
    """``(?i)`` compiles on its own but not behind the prefix that :func:`matches` puts before it."""
    try:
        config = PoTConfig("pot4", ignore=["(?i)lm_head"])
    except ConfigError:
        return
    assert matches(config.ignore[0], "model.LM_Head")


def test_scheme_and_preset_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="not both"):
        PoTConfig("pot4", scheme="pot3")
    with pytest.raises(ConfigError, match="not both"):
        PoTConfig(scheme="pot3", group_size=32)


def test_a_grid_or_a_preset_is_needed() -> None:
    with pytest.raises(ConfigError, match="grid: Field required"):
        QuantScheme()
    with pytest.raises(ConfigError, match="scheme: Field required"):
        PoTConfig()


def _through_json(config: PoTConfig) -> PoTConfig:
    return PoTConfig.from_dict(json.loads(json.dumps(config.to_dict())))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_json_round_trip_of_every_preset(name: str) -> None:
    config = PoTConfig(name, targets={"head": name}, embedding=name)
    assert _through_json(config) == config
    assert _through_json(config).to_dict() == config.to_dict()


def test_json_round_trip_of_every_field() -> None:
    config = PoTConfig(
        grid=pot(5, stride=3),
        group_size="tensor",
        scale_dtype="e8m0",
        rounding="log",
        targets={r"layers\.0\..*": "pot2", "b": {"preset": "int4", "group_size": "row"}},
        ignore=["lm_head", "c"],
        embedding=None,
        scale_method="weighted",
        scale_candidates=7,
    )
    again = _through_json(config)
    assert again == config
    assert list(again.targets) == list(config.targets)  # the first match wins, so order is meaning


def test_json_form_is_plain_and_versioned() -> None:
    fields = PoTConfig("mxpot").to_dict()
    assert (fields["quant_method"], fields["version"]) == ("potq", 1)
    assert fields["scheme"]["grid"] == {"bits": 4, "encoding": "sign-magnitude", "magnitudes": [0, 1, 2, 2, 4, 4, 8, 8]}
    assert PoTConfig("mxpot").to_diff_dict() == fields
    grid = PoTConfig(grid=table((-3, 0, 1, 2))).to_dict()["scheme"]["grid"]
    assert grid == {"bits": 2, "encoding": "table", "magnitudes": [], "table": [-3, 0, 1, 2]}


def test_configs_written_before_there_were_row_scales_have_none() -> None:
    fields = PoTConfig("mxpot").to_dict()
    assert fields["scheme"].pop("row_scale") is False
    assert fields["embedding"].pop("row_scale") is False
    assert PoTConfig.from_dict(fields) == PoTConfig("mxpot")
    rowwise = PoTConfig("mxpot", row_scale=True)
    assert rowwise.scheme == QuantScheme("mxpot", row_scale=True) != PRESETS["mxpot"]
    assert _through_json(rowwise) == rowwise


def test_from_dict_leaves_its_argument_alone() -> None:
    fields = {"scheme": {"preset": "pot4", "group_size": 32}}
    assert PoTConfig.from_dict(fields).scheme == QuantScheme("pot4", group_size=32)
    assert fields == {"scheme": {"preset": "pot4", "group_size": 32}}


def test_from_dict_refuses_another_format_version_and_unknown_keys() -> None:
    fields = PoTConfig("pot4").to_dict()
    with pytest.raises(CheckpointError, match="format version 0"):
        PoTConfig.from_dict({**fields, "version": 0})
    with pytest.raises(ConfigError, match="zero_point: unknown key"):
        PoTConfig.from_dict({**fields, "zero_point": True})


def test_targets_by_name_by_mapping_and_by_scheme() -> None:
    config = PoTConfig(
        "pot4",
        targets={"a": "pot3", "b": {"preset": "pot2", "group_size": 16}, "c": {"grid": "int4"}, "d": PRESETS["mxfp4"]},
    )
    assert config.targets == {
        "a": PRESETS["pot3"],
        "b": QuantScheme("pot2", group_size=16),
        "c": PRESETS["int4"],
        "d": PRESETS["mxfp4"],
    }


def test_embedding_by_name_and_none() -> None:
    assert PoTConfig("pot4", embedding="int4").embedding == PRESETS["int4"]
    assert PoTConfig("pot4", embedding=None).embedding is None


def test_schemes_and_configs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        PRESETS["pot4"].group_size = 3
    with pytest.raises(ValidationError):
        PoTConfig("pot4").ignore = ("a",)


def test_equal_schemes_and_configs_hash_alike() -> None:
    assert hash(QuantScheme("pot4", group_size=32)) == hash(QuantScheme(grid=pot(4), group_size=32))
    assert len({QuantScheme("pot4"), QuantScheme("pot4"), QuantScheme("pot4", rounding="log")}) == 2
    one, two = (PoTConfig("pot4", targets={"a": "pot3"}) for _ in range(2))
    assert hash(one) == hash(two)
    assert len({one, two, PoTConfig("pot4")}) == 2


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("down_proj", "model.layers.0.mlp.down_proj", True),
        ("down_proj", "down_proj", True),
        ("down_proj", "model.updown_proj", False),
        ("down_proj", "down_proj.lora", False),
        ("mlp.down_proj", "model.layers.0.mlp.down_proj", True),
        (r"layers\.0\..*", "model.layers.0.mlp.down_proj", True),
        (r"layers\.0\..*", "model.layers.10.mlp.down_proj", False),
        (r"layers\.0", "model.layers.0.mlp", False),
        ("q_proj|k_proj", "model.q_proj", True),
        ("q_proj|k_proj", "model.k_proj", True),
        ("q_proj|k_proj", "model.k_proj.x", False),
        ("q_proj|k_proj", "xq_proj", False),
        (".*", "", True),
        ("", "a.b", False),
        ("LM_head", "lm_head", False),
    ],
)
def test_a_pattern_matches_the_whole_name_or_a_dotted_suffix(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


@pytest.mark.parametrize(
    ("name", "fields", "bits"),
    [
        ("pot4", {}, 4.25),
        ("pot3", {}, 3.25),
        ("pot2", {}, 2.25),
        ("int8", {}, 8.25),
        ("mxfp4", {}, 4.25),
        ("pot4", {"group_size": 128}, 4.125),
        ("pot4", {"group_size": 128, "scale_dtype": "e8m0"}, 4.0625),
        ("pot4", {"group_size": "row"}, 4 + 16 / 4096),
        ("pot4", {"group_size": 32, "scale_dtype": "e8m0", "row_scale": True}, 4.25 + 16 / 4096),
        ("pot4", {"group_size": "tensor"}, 4 + 16 / (4096 * 8)),
    ],
)
def test_bits_per_weight_of_wide_rows(name: str, fields: dict[str, Any], bits: float) -> None:
    assert QuantScheme(name, **fields).bits_per_weight(8, 4096) == bits


def test_bits_per_weight_counts_padding_and_the_ragged_groups_scale() -> None:
    # 5 columns of 3 bits: 2 bytes of low bits and 1 of signs, with 1 scale; 65 columns of 4 bits: 33 bytes, 2 scales
    assert PRESETS["pot3"].bits_per_weight(7, 5) == (24 + 16) / 5
    assert PRESETS["pot4"].bits_per_weight(7, 65) == (33 * 8 + 32) / 65


@pytest.mark.parametrize(
    ("group_size", "columns", "group", "shape"),
    [(64, 128, 64, (3, 2)), (64, 129, 64, (3, 3)), (64, 10, 10, (3, 1)), (1, 10, 1, (3, 10)), ("row", 10, 10, (3, 1)),
     ("tensor", 10, 10, (1, 1))],
)  # fmt: skip
def test_group_and_scale_shape(group_size: int | str, columns: int, group: int, shape: tuple[int, int]) -> None:
    scheme = QuantScheme("pot4", group_size=group_size)
    assert scheme.group(columns) == group
    assert scheme.scale_shape(3, columns) == shape


@pytest.mark.parametrize(
    ("bits", "widths"), [(2, (2,)), (3, (2, 1)), (4, (4,)), (5, (4, 1)), (6, (4, 1, 1)), (7, (4, 1, 1, 1)), (8, (8,))]
)
def test_plane_widths_sum_to_the_bits(bits: int, widths: tuple[int, ...]) -> None:
    assert plane_widths(bits) == widths
    assert packed_row_bytes(8, bits) == bits
    assert packed_row_bytes(1, bits) == len(widths)


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        (PRESETS["pot4"], "pot4-g64"),
        (PRESETS["mxpot"], "mxpot-g32-e8m0"),
        (QuantScheme("mxpot", row_scale=True), "mxpot-g32-e8m0-row"),
        (QuantScheme("pot3", group_size="row", scale_dtype="e8m0", row_scale=True, rounding="log"), "pot3-row-e8m0-row-log"),
        (QuantScheme("pot3", group_size="row", rounding="log"), "pot3-row-log"),
        (QuantScheme("pot3", group_size="tensor"), "pot3-tensor"),
        (QuantScheme(grid=pot(4, stride=2)), "custom4-g64"),
        (PRESETS["iq4nl"], "iq4nl-g32"),
    ],
)
def test_short_name(scheme: QuantScheme, name: str) -> None:
    assert scheme.name == name


def test_signed_scales_are_for_float16_and_tables_with_two_sides() -> None:
    assert QuantScheme("int3", signed_scale=True).name == "int3-g64-signed"
    assert (QuantScheme("pot3s").name, QuantScheme("pot3s", signed_scale=False).name) == ("pot3s-g64", "pot3s-g64-unsigned")
    with pytest.raises(ConfigError, match="E8M0 scales have no sign"):
        QuantScheme("pot3s", scale_dtype="e8m0")
    with pytest.raises(ConfigError, match="a sign would change nothing"):
        QuantScheme("pot3", signed_scale=True)


def test_other_schemes_keep_the_json_they_had() -> None:
    assert "signed_scale" not in PoTConfig("pot3").to_dict()["scheme"]
    assert PoTConfig("pot3s").to_dict()["scheme"]["signed_scale"] is True


# ---- a preset with overrides in one word ---------------------------------------------------------------------------


def test_a_word_overrides_a_preset_everywhere() -> None:
    wanted = QuantScheme("pot4", group_size=32)
    assert QuantScheme("pot4:group_size=32") == wanted
    config = PoTConfig("pot4:group_size=32", embedding="int8:group_size=row", targets={"head": "pot3s:signed_scale=false"})
    assert config.scheme == wanted
    assert config.embedding == QuantScheme("int8", group_size="row")
    assert config.targets["head"] == QuantScheme("pot3s", signed_scale=False)
    assert PoTConfig("pot4", targets={"head": {"preset": "pot3:group_size=16"}}).targets["head"].group_size == 16


@pytest.mark.parametrize(
    ("word", "fields", "message"),
    [
        ("pot4:32", {}, r"pot4:32: '32' is not an override; write it like pot4:group_size=32"),
        ("pot4:group_size=", {}, "group_size"),
        ("pot4:group_size=32:group_size=16", {}, "group_size is given twice"),
        ("pot4:group_size=32", {"group_size": 16}, "group_size is given twice, in 'pot4:group_size=32' and beside it"),
        ("pot4:size=32", {}, "size: unknown key"),
        ("pot9:group_size=32", {}, "unknown preset 'pot9'"),
    ],
)
def test_words_that_mean_nothing(word: str, fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantScheme(word, **fields)
    with pytest.raises(ConfigError, match=message):
        PoTConfig(word, **fields)
