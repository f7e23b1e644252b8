"""Recipes: YAML files, options, ``a.b=value`` overrides, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from potq import PoTConfig, QuantScheme
from potq.cli.recipe import CalibrationRecipe, QuantizeRecipe, build, parse_schemes
from potq.config import EFFORTS
from potq.errors import ConfigError
from potq.qat.recipe import TrainRecipe

BASE = {"model": "m", "output": "o"}
DEFAULT = PoTConfig("apot4:group_size=32", embedding="apot4:group_size=32")


def recipe(tmp_path: Path, text: str, overrides: list[str] | None = None, **options: Any) -> QuantizeRecipe:
    (tmp_path / "recipe.yaml").write_text(text)
    return build(QuantizeRecipe, tmp_path / "recipe.yaml", overrides or [], options)


def test_defaults() -> None:
    found = build(QuantizeRecipe, None, [], BASE)
    assert found == QuantizeRecipe(model="m", output=Path("o"))
    assert found.config() == DEFAULT
    assert (found.calibration, found.dtype, found.max_shard_size, found.force) == (None, "auto", "5GB", False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"quantization.preset": "pot3"}, PoTConfig("pot3")),
        ({"quantization.group_size": "row"}, PoTConfig("apot4", group_size="row", embedding="apot4:group_size=32")),
        ({"quantization.embedding": "int8"}, PoTConfig("apot4:group_size=32")),
        ({"quantization.embedding": "none"}, PoTConfig("apot4:group_size=32", embedding=None)),
        ({"quantization.effort": "balanced"}, DEFAULT.model_copy(update={"effort": EFFORTS["balanced"]})),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_embedding_and_head_are_as_the_default_linears_and_8_bits_beside_others(
    options: dict[str, Any], expected: PoTConfig
) -> None:
    assert build(QuantizeRecipe, None, [], BASE | options).config() == expected


def test_a_whole_recipe(tmp_path: Path) -> None:
    text = """
        model: some/model
        output: out
        quantization:
          preset: pot4
          group_size: 32
          embedding: none
          ignore: [lm_head]
          targets:
            down_proj: pot3
            q_proj: {preset: pot4, group_size: row}
          scale_method: weighted
        calibration: {text: pydoc, window: 64}
        dtype: float32
        force: true
    """
    found = recipe(tmp_path, text)
    assert found.config() == PoTConfig(
        "pot4",
        group_size=32,
        embedding=None,
        ignore=["lm_head"],
        targets={"down_proj": QuantScheme("pot3"), "q_proj": QuantScheme("pot4", group_size="row")},
        scale_method="weighted",
    )
    assert found.calibration == CalibrationRecipe(text="pydoc", window=64, windows=64, seed=None)
    assert found.force


def test_later_settings_win(tmp_path: Path) -> None:
    text = "{model: a, output: b, quantization: {preset: pot3, group_size: 16}}"
    found = recipe(
        tmp_path,
        text,
        ["quantization.group_size=128", "calibration.text=x"],
        **{"model": "c", "quantization.preset": "pot4"},
    )
    assert (found.model, found.output) == ("c", Path("b"))
    assert found.config() == PoTConfig("pot4", group_size=128)
    assert found.calibration == CalibrationRecipe(text="x")


def test_options_that_are_not_given_change_nothing(tmp_path: Path) -> None:
    assert recipe(tmp_path, "{model: a, output: b, dtype: float16}", dtype=None).dtype == "float16"


@pytest.mark.parametrize(
    ("override", "config"),
    [
        ("quantization.group_size=row", PoTConfig("apot4", group_size="row")),
        ("quantization.ignore=[lm_head, embed_tokens]", PoTConfig("apot4", ignore=["lm_head", "embed_tokens"])),
        ("quantization.targets.q_proj=pot4", PoTConfig("apot4", targets={"q_proj": "pot4"})),
        ("quantization.embedding=null", PoTConfig("apot4", embedding=None)),
        ("quantization.embedding=", PoTConfig("apot4", embedding=None)),
    ],
)
def test_overrides_are_yaml(override: str, config: PoTConfig) -> None:
    assert build(QuantizeRecipe, None, [override], BASE | {"quantization.preset": "apot4"}).config() == config


def test_calibration_text_is_the_models_own_by_default() -> None:
    recipe = CalibrationRecipe()
    assert (recipe.text, recipe.window, recipe.windows, recipe.seed) == ("self", None, 64, None)
    built = build(QuantizeRecipe, None, ["calibration.windows=3"], BASE)
    assert built.calibration == CalibrationRecipe(text="self", windows=3)


def test_a_value_may_contain_an_equals_sign() -> None:
    assert build(QuantizeRecipe, None, ["model=a=b"], BASE).model == "a=b"


# ---- what is refused


@pytest.mark.parametrize("key", ["colour", "quantization.colour", "calibration.colour"])
def test_an_unknown_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=r"colour: unknown key \(found 'red'\)"):
        build(QuantizeRecipe, None, [f"{key}=red"], BASE | {"calibration.text": "pydoc"}).config()


def test_an_unknown_key_in_the_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)recipe\.yaml.*colour: unknown key"):
        recipe(tmp_path, "{model: a, output: b, colour: red}")


def test_every_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"(?s)model: Field required.*output: Field required"):
        build(QuantizeRecipe, None, [], {})


def test_an_unknown_preset() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'pot9'; the presets are .*apot4.*pot4"):
        build(QuantizeRecipe, None, ["quantization.preset=pot9"], BASE).config()


@pytest.mark.parametrize("override", ["nonsense", "=5", ""])
def test_an_override_that_is_none(override: str) -> None:
    with pytest.raises(ConfigError, match=r"is not an override; write key=value"):
        build(QuantizeRecipe, None, [override], BASE)


def test_an_override_into_a_value() -> None:
    with pytest.raises(ConfigError, match=r"model\.x: model is 'm', not a mapping"):
        build(QuantizeRecipe, None, ["model.x=1"], BASE)


@pytest.mark.parametrize("value", ["[a", "{a: ", "'"])
def test_an_override_that_is_no_yaml(value: str) -> None:
    with pytest.raises(ConfigError, match=r"quantization\.ignore"):
        build(QuantizeRecipe, None, [f"quantization.ignore={value}"], BASE)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*none\.yaml \(No such file or directory\)"):
        build(QuantizeRecipe, tmp_path / "none.yaml", [], {})


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\t- x"])
def test_a_recipe_that_is_no_yaml(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml is not YAML: "):
        recipe(tmp_path, text)


def test_a_recipe_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"model: \xff")
    with pytest.raises(ConfigError, match=r"recipe\.yaml is not UTF-8"):
        build(QuantizeRecipe, tmp_path / "recipe.yaml", [], {})


@pytest.mark.parametrize("text", ["", "[1, 2]", "just words"])
def test_a_recipe_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml holds no YAML mapping"):
        recipe(tmp_path, text)


@pytest.mark.parametrize("text", ["1: 2", "{model: a, output: b, true: x}"])
def test_a_recipe_whose_keys_are_no_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        recipe(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("calibration.window=1", r"(?s)calibration.*window: "),
        ("calibration.windows=0", r"(?s)calibration.*windows: "),
        ("calibration.seed=-1", r"(?s)calibration.*seed: "),
        ("force=perhaps", "force"),
        ("quantization=pot4", "quantization"),
        ("quantization.group_size=-3", "group_size"),
        ("quantization.preset=[pot4]", "preset"),
    ],
)
def test_a_value_out_of_range(override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build(QuantizeRecipe, None, [override], BASE | {"calibration.text": "pydoc"}).config()


def test_an_option_fills_a_null_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("{model: a, output: b, calibration: null}")
    built = build(QuantizeRecipe, tmp_path / "recipe.yaml", [], {"calibration.text": "pydoc"})
    assert built.calibration is not None
    assert built.calibration.text == "pydoc"


# ---- schemes in words, and what decides about calibration


def test_schemes_in_words() -> None:
    found = parse_schemes("pot3, pot4:group_size=32:scale_dtype=e8m0,int4:group_size=row")
    expected = QuantScheme("pot4", group_size=32, scale_dtype="e8m0")
    assert found == (QuantScheme("pot3"), expected, QuantScheme("int4", group_size="row"))
    assert parse_schemes("pot4:scale_dtype=e8m0:row_scale=true")[0].row_scale


@pytest.mark.parametrize("candidates", ["pot3,pot4:group_size=32", ["pot3", {"preset": "pot4", "group_size": 32}]])
def test_candidates(candidates: Any) -> None:
    found = QuantizeRecipe(**BASE, candidates=candidates)
    assert found.schemes == (QuantScheme("pot3"), QuantScheme("pot4", group_size=32))
    assert found.allocates
    assert not QuantizeRecipe(**BASE).allocates
    assert len(QuantizeRecipe(**BASE, budget=3).schemes) == 6


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, None),
        ({"quantization": {"effort": "fast"}}, None),
        ({"quantization": {"effort": "balanced"}}, CalibrationRecipe()),
        ({"quantization": {"effort": {"rounds": 1}}}, CalibrationRecipe()),
        ({"quantization": {"effort": "best"}, "calibration": {"text": "pydoc"}}, CalibrationRecipe(text="pydoc")),
        ({"calibration": {"windows": 3}}, CalibrationRecipe(windows=3)),
        ({"budget": 3.0, "quantization": {"effort": "gptq"}}, CalibrationRecipe()),
    ],
)
def test_calibration_text_where_the_effort_needs_it(fields: dict[str, Any], text: CalibrationRecipe | None) -> None:
    assert QuantizeRecipe(**BASE, **fields).calibration_text() == text


def test_the_example_is_a_recipe() -> None:
    example = Path(__file__).parents[2] / "examples" / "recipe.yaml"
    assert build(QuantizeRecipe, example, [], {}).calibration_text() is None


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_recipes_for_training_are_recipes(file: Path) -> None:
    recipe = build(TrainRecipe, file, ["quantization.preset=pot3"], {})
    assert recipe.config() == PoTConfig("pot3", embedding=recipe.quantization["embedding"])
