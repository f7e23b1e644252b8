"""Whatever is wrong with models, files or settings: one of potq's errors, that says where it is wrong and what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import potq
from potq.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, ModelError, PotqError
from potq.numerics.scheme import PRESETS

Q_PROJ = "model.layers.0.self_attn.q_proj"
Change = Callable[[dict[str, torch.Tensor]], Any]


def edit_weights(folder: Path, change: Change) -> Path:
    """Rewrite ``folder``'s only weight file with ``change`` applied to its tensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata={"format": "pt"})
    return file


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def put(key: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({key: value})


def poke(key: str, at: tuple[int, int], value: float) -> Change:
    return lambda tensors: tensors[key].__setitem__(at, value)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_unchanged(model: Any, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) or before[key].isnan().any() for key in before)
    assert getattr(model.config, "quantization_config", None) is None
    assert not hasattr(model, "quant_report")


def test_every_error_is_a_potq_error_and_a_builtin_one() -> None:
    for kind, builtin in {
        ConfigError: ValueError,
        ModelError: ValueError,
        CheckpointError: OSError,
        DataError: ValueError,
        MissingDependencyError: ImportError,
    }.items():
        assert issubclass(kind, PotqError)
        assert issubclass(kind, builtin)
        assert str(kind("file x is broken; repair it")) == "file x is broken; repair it"


# ---- folders


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere' does not exist; give a model folder"):
        potq.load(tmp_path / "nowhere")


def test_a_folder_without_config(tiny_folder: Path) -> None:
    (tiny_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"tiny/config\.json is missing: the folder is incomplete, or no model"):
        potq.load(tiny_folder)


def test_a_half_written_config(tiny_folder: Path) -> None:
    file = tiny_folder / "config.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(CheckpointError, match=r"tiny/config\.json cannot be read \(.*\); copy it again"):
        potq.load(tiny_folder)


def test_a_config_that_is_a_list(tiny_folder: Path) -> None:
    (tiny_folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tiny/config\.json holds no JSON object"):
        potq.load(tiny_folder)


def test_a_missing_shard(packed_model: Any, tmp_path: Path) -> None:
    potq.save(packed_model, tmp_path / "out", max_shard_size="20KB")
    shard = sorted((tmp_path / "out").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"index\.json names {shard.name}, not in the folder; copy it again"):
        potq.load(tmp_path / "out")


@pytest.mark.parametrize("kind", ["tiny_folder", "packed_folder"])
@pytest.mark.parametrize("keep", [0, 5, 200, -1000])
def test_a_truncated_weight_file(request: pytest.FixtureRequest, kind: str, keep: int) -> None:
    folder = request.getfixturevalue(kind)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or corrupted \(.*\); copy it again"):
        potq.load(folder)


@pytest.mark.parametrize("damage", [b"\xff" * 8, b"\x10" + b"\0" * 7 + b"not JSON at all."])
def test_a_corrupted_header(packed_folder: Path, damage: bytes) -> None:
    file = packed_folder / "model.safetensors"
    file.write_bytes(damage + file.read_bytes()[len(damage) :])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or corrupted"):
        potq.load(packed_folder)


def test_only_pickled_weights(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").unlink()
    torch.save({}, tiny_folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"tiny has only pickled weights \(\.bin\), .*convert to safetensors"):
        potq.load(tiny_folder)


def test_no_weights_at_all(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tiny has no model\.safetensors"):
        potq.load(tiny_folder)


@pytest.mark.parametrize("config", [None, potq.PoTConfig("pot4")], ids=["load", "quantize"])
@pytest.mark.parametrize("key", [f"{Q_PROJ}.weight", "model.norm.weight"])
def test_a_full_precision_tensor_that_is_missing(tiny_folder: Path, config: Any, key: str) -> None:
    edit_weights(tiny_folder, lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointError, match=re.escape(key.removesuffix(".weight"))):
        potq.load(tiny_folder, config)


@pytest.mark.parametrize("config", [None, potq.PoTConfig("pot4")], ids=["load", "quantize"])
def test_a_full_precision_tensor_of_the_wrong_shape(tiny_folder: Path, config: Any) -> None:
    edit_weights(tiny_folder, put(f"{Q_PROJ}.weight", torch.zeros(64, 32)))
    with pytest.raises(CheckpointError, match=re.escape(Q_PROJ)):
        potq.load(tiny_folder, config)


@pytest.mark.parametrize("content", ["{", '{"modules": []}', "[]"])
def test_a_damaged_report(packed_folder: Path, content: str) -> None:
    (packed_folder / "quant_report.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"quant_report\.json"):
        potq.load(packed_folder)


def test_a_dtype_that_is_none(tiny_folder: Path) -> None:
    with pytest.raises(PotqError, match="banana"):
        potq.load(tiny_folder, dtype="banana")


# ---- the quantization_config of a checkpoint


def test_a_newer_format(packed_folder: Path) -> None:
    edit_config(packed_folder, lambda config: config["quantization_config"].update(version=2))
    with pytest.raises(CheckpointError, match="of format version 2, this potq reads version 1; upgrade potq"):
        potq.load(packed_folder)


def test_an_unknown_key_in_the_quantization_config(packed_folder: Path) -> None:
    edit_config(packed_folder, lambda config: config["quantization_config"].update(colour="red"))
    with pytest.raises(ConfigError, match=r"colour: unknown key \(found 'red'\)"):
        potq.load(packed_folder)


def test_an_unknown_key_in_a_stored_scheme(packed_folder: Path) -> None:
    edit_config(packed_folder, lambda config: config["quantization_config"]["scheme"].update(zero_point=True))
    with pytest.raises(ConfigError, match="zero_point: unknown key"):
        potq.load(packed_folder)


def test_a_quantization_config_without_scheme(packed_folder: Path) -> None:
    edit_config(packed_folder, lambda config: config["quantization_config"].pop("scheme"))
    with pytest.raises(ConfigError, match="scheme: Field required"):
        potq.load(packed_folder)


@pytest.mark.parametrize("magnitudes", [[0, 1, 2], [3, 2, 1, 0, 5, 6, 7, 8], [0, 1, 2, 4, 8, 16, 32, 2**64]])
def test_a_grid_that_is_none(packed_folder: Path, magnitudes: list[int]) -> None:
    edit_config(packed_folder, lambda config: config["quantization_config"]["scheme"]["grid"].update(magnitudes=magnitudes))
    with pytest.raises(ConfigError, match="magnitudes"):
        potq.load(packed_folder)


# ---- the content of a packed checkpoint


def test_packed_codes_of_the_wrong_shape(packed_folder: Path) -> None:
    file = edit_weights(packed_folder, put(f"{Q_PROJ}.weight_packed", torch.zeros(64, 16, dtype=torch.uint8)))
    with pytest.raises(CheckpointError) as caught:
        potq.load(packed_folder)
    assert f"{file}: {Q_PROJ}.weight_packed is U8 [64, 16], expected U8 [64, 32]" in str(caught.value)


def test_scales_of_the_wrong_dtype(packed_folder: Path) -> None:
    edit_weights(packed_folder, put(f"{Q_PROJ}.weight_scale", torch.ones(64, 1, dtype=torch.bfloat16)))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight_scale is BF16 \[64, 1\], expected F16 \[64, 1\]"):
        potq.load(packed_folder)


def test_a_config_of_another_group_size(packed_folder: Path) -> None:
    edit_config(packed_folder, lambda config: config["quantization_config"]["scheme"].update(group_size=32))
    with pytest.raises(CheckpointError, match=r"weight_scale is F16 \[.*\], expected F16 .*do not belong together"):
        potq.load(packed_folder)


def test_packed_weights_that_the_config_leaves_unquantized(packed_folder: Path) -> None:
    edit_config(packed_folder, lambda config: config["quantization_config"].update(ignore=["q_proj"]))
    with pytest.raises(CheckpointError, match=r"packed holds 15 packed weights, .* asks for 13; unexpected: .*q_proj"):
        potq.load(packed_folder)


@pytest.mark.parametrize("tensor", ["weight_packed", "weight_scale"])
@pytest.mark.parametrize("module", [Q_PROJ, "model.embed_tokens"])
def test_a_packed_tensor_that_is_missing(packed_folder: Path, module: str, tensor: str) -> None:
    edit_weights(packed_folder, lambda tensors: tensors.pop(f"{module}.{tensor}"))
    with pytest.raises(CheckpointError, match=re.escape(f"{module}.{tensor}")):
        potq.load(packed_folder)


def test_a_packed_tensor_of_another_name(packed_folder: Path) -> None:
    edit_weights(packed_folder, lambda t: t.update({"other.weight_packed": t.pop(f"{Q_PROJ}.weight_packed")}))
    with pytest.raises(CheckpointError, match=re.escape(f"{Q_PROJ}.weight_packed")):
        potq.load(packed_folder)


@pytest.mark.parametrize("kind", ["tiny_folder", "packed_folder"])
def test_a_weight_file_without_tensors(request: pytest.FixtureRequest, kind: str) -> None:
    folder = request.getfixturevalue(kind)
    edit_weights(folder, lambda tensors: tensors.clear())
    with pytest.raises(CheckpointError, match=folder.name):
        potq.load(folder)


def test_a_full_precision_folder_with_a_packed_config(packed_folder: Path, tiny_folder: Path) -> None:
    (packed_folder / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="weight_packed"):
        potq.load(packed_folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_scale_that_is_no_scale(packed_folder: Path, value: float) -> None:
    edit_weights(packed_folder, poke(f"{Q_PROJ}.weight_scale", (3, 0), value))
    with pytest.raises(CheckpointError, match=rf"{Q_PROJ}: 1 scales are negative, infinite or NaN; the file is damaged"):
        potq.load(packed_folder)


@pytest.fixture
def mxpot_folder(tiny_model: Any, tmp_path: Path) -> Path:
    potq.quantize(tiny_model, potq.PoTConfig("mxpot"))
    potq.save(tiny_model, tmp_path / "mxpot")
    return tmp_path / "mxpot"


def test_the_e8m0_scale_that_means_nan(mxpot_folder: Path) -> None:
    edit_weights(mxpot_folder, poke(f"{Q_PROJ}.weight_scale", (0, 1), 255))
    with pytest.raises(CheckpointError, match=rf"{Q_PROJ}: 1 scales"):
        potq.load(mxpot_folder)


@pytest.fixture
def row_scaled_folder(tiny_model: Any, tmp_path: Path) -> Path:
    potq.quantize(tiny_model, potq.PoTConfig("pot4", group_size=32, scale_dtype="e8m0", row_scale=True))
    potq.save(tiny_model, tmp_path / "rows")
    return tmp_path / "rows"


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.ones(64, 1), r"F32 \[64, 1\]"),
        (torch.ones(1, 64, dtype=torch.float16), r"F16 \[1, 64\]"),
        (torch.ones(64, dtype=torch.float16), r"F16 \[64\]"),
    ],
)
def test_row_scales_of_the_wrong_kind(row_scaled_folder: Path, tensor: torch.Tensor, found: str) -> None:
    edit_weights(row_scaled_folder, put(f"{Q_PROJ}.weight_row_scale", tensor))
    with pytest.raises(CheckpointError, match=rf"q_proj\.weight_row_scale is {found}, expected F16 \[64, 1\]"):
        potq.load(row_scaled_folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_row_scale_that_is_no_scale(row_scaled_folder: Path, value: float) -> None:
    edit_weights(row_scaled_folder, poke(f"{Q_PROJ}.weight_row_scale", (3, 0), value))
    with pytest.raises(CheckpointError, match=rf"{Q_PROJ}: 1 row scales are negative, infinite or NaN; the file is damaged"):
        potq.load(row_scaled_folder)


def test_row_scales_that_are_missing(row_scaled_folder: Path) -> None:
    edit_weights(row_scaled_folder, lambda tensors: tensors.pop(f"{Q_PROJ}.weight_row_scale"))
    with pytest.raises(CheckpointError, match=rf"holds 13 row scales, .* asks for 14; missing: {Q_PROJ}\.weight_row_scale"):
        potq.load(row_scaled_folder)


def test_row_scales_of_another_name(row_scaled_folder: Path) -> None:
    edit_weights(row_scaled_folder, lambda t: t.update({"other.weight_row_scale": t.pop(f"{Q_PROJ}.weight_row_scale")}))
    with pytest.raises(CheckpointError, match=re.escape(f"{Q_PROJ}.weight_row_scale")):
        potq.load(row_scaled_folder)


def test_row_scales_that_the_config_does_not_ask_for(row_scaled_folder: Path) -> None:
    edit_config(row_scaled_folder, lambda config: config["quantization_config"]["scheme"].update(row_scale=False))
    with pytest.raises(CheckpointError, match=r"holds 14 row scales, its config\.json asks for 0; unexpected: "):
        potq.load(row_scaled_folder)


@pytest.mark.parametrize("fields", [{"scale_dtype": "float16"}, {"group_size": "tensor"}])
def test_a_stored_scheme_that_cannot_have_row_scales(row_scaled_folder: Path, fields: dict[str, Any]) -> None:
    edit_config(row_scaled_folder, lambda config: config["quantization_config"]["scheme"].update(fields))
    with pytest.raises(ConfigError, match="row_scale=True needs"):
        potq.load(row_scaled_folder)


@pytest.mark.parametrize("code", [3, 5, 7, 11])
def test_a_code_that_the_grid_never_uses(mxpot_folder: Path, code: int) -> None:
    edit_weights(mxpot_folder, poke(f"{Q_PROJ}.weight_packed", (0, 0), code))
    with pytest.raises(CheckpointError, match=rf"{Q_PROJ}: codes outside the grid .*; the file is damaged"):
        potq.load(mxpot_folder)


def test_padding_that_is_set(tmp_path: Path) -> None:
    golden = shutil.copytree(Path(__file__).parent / "golden" / "pot3_g32", tmp_path / "out")  # rows of 70 codes

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.down_proj.weight_packed"][5, -1] |= 0x80

    edit_weights(golden, damage)
    with pytest.raises(CheckpointError, match=r"down_proj: the padding behind the last code of a row is not zero"):
        potq.load(golden)


# ---- weights that cannot be quantized


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tiny_model: Any, tiny_folder: Path, value: float) -> None:
    message = rf"{Q_PROJ}\.weight has 1 NaN or infinite entries; repair the model, or ignore the layer"
    with torch.no_grad():
        tiny_model.get_submodule(Q_PROJ).weight[2, 5] = value
    before = state(tiny_model)
    with pytest.raises(ModelError, match=message):
        potq.quantize(tiny_model, potq.PoTConfig("pot4"))
    assert_unchanged(tiny_model, before)
    tiny_model.save_pretrained(tiny_folder)
    with pytest.raises(ModelError, match=message):
        potq.load(tiny_folder, potq.PoTConfig("pot4"))
    potq.load(tiny_folder, potq.PoTConfig("pot4", ignore=[r"layers\.0\.self_attn\.q_proj"]))  # the remedy


def test_weights_beyond_float16(tiny_model: Any, tiny_folder: Path) -> None:
    message = rf"{Q_PROJ}\.weight reaches 7e\+04, its scale would pass float16's 65504; use scale_dtype='e8m0'"
    with torch.no_grad():
        tiny_model.get_submodule(Q_PROJ).weight[2, 5] = -70_000.0
    before = state(tiny_model)
    with pytest.raises(ModelError, match=message):
        potq.quantize(tiny_model, potq.PoTConfig("pot4"))
    assert_unchanged(tiny_model, before)
    tiny_model.save_pretrained(tiny_folder)
    with pytest.raises(ModelError, match=message):
        potq.load(tiny_folder, potq.PoTConfig("pot4"))
    potq.load(tiny_folder, potq.PoTConfig("pot4", scale_dtype="e8m0"))  # the remedy


def test_a_model_that_is_quantized_already(packed_model: Any, tokens: torch.Tensor) -> None:
    before = packed_model(tokens).logits
    with pytest.raises(ModelError, match="the model is quantized already; load the full-precision one"):
        potq.quantize(packed_model, potq.PoTConfig("pot4"))
    assert torch.equal(packed_model(tokens).logits, before)


def test_a_folder_that_is_quantized_already(packed_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="packed is quantized already; quantize the full-precision model"):
        potq.load(packed_folder, potq.PoTConfig("pot3"))


def test_nothing_left_to_quantize(tiny_model: Any, tiny_folder: Path) -> None:
    config = potq.PoTConfig("pot4", ignore=[".*"])
    with pytest.raises(ModelError, match=r"nothing to quantize: .*ignored by config"):
        potq.quantize(tiny_model, config)
    with pytest.raises(ModelError, match=r"nothing to quantize: .*ignored by config"):
        potq.load(tiny_folder, config)


# ---- configs


def test_a_pattern_that_matches_nothing(tiny_model: Any, tiny_folder: Path) -> None:
    for config in (potq.PoTConfig("pot4", ignore=["experts"]), potq.PoTConfig("pot4", targets={"experts": "pot3"})):
        with pytest.raises(ConfigError, match=r"pattern 'experts' matches no module; the modules are named like model\."):
            potq.quantize(tiny_model, config)
        with pytest.raises(ConfigError, match="pattern 'experts' matches no module"):
            potq.load(tiny_folder, config)


def test_a_pattern_that_is_no_regular_expression() -> None:
    with pytest.raises(ConfigError, match=r"ignore: .*'\*\.q_proj' is not a regular expression"):
        potq.PoTConfig("pot4", ignore=["*.q_proj"])


def test_tied_modules_with_different_schemes(tiny_model: Any, tiny_folder: Path) -> None:
    config = potq.PoTConfig("pot4", targets={"lm_head": "pot3"})
    before = state(tiny_model)
    with pytest.raises(
        ConfigError, match=r"embed_tokens and lm_head are tied and share one weight; give them the same scheme"
    ):
        potq.quantize(tiny_model, config)
    assert_unchanged(tiny_model, before)
    with pytest.raises(ConfigError, match="are tied"):
        potq.load(tiny_folder, config)


@pytest.mark.parametrize("make", [potq.PoTConfig, potq.QuantScheme])
def test_an_unknown_preset(make: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        make("pot9")
    assert str(caught.value).startswith("unknown preset 'pot9'; the presets are ")
    assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize("fields", [{"embedding": "pot9"}, {"targets": {"q_proj": "pot9"}}, {"scheme": "pot9"}])
def test_an_unknown_preset_within(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="unknown preset 'pot9'"):
        potq.PoTConfig(**({"scheme": "pot4"} | fields))


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"colour": 1}, "colour"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": "column"}, "group_size"),
        ({"scale_dtype": "float8"}, "scale_dtype"),
        ({"row_scale": True}, ".*row_scale"),
        ({"scale_method": "best"}, "scale_method"),
        ({"scale_candidates": 0}, "scale_candidates"),
        ({"targets": {"q_proj": {"colour": 1}}}, "colour"),
        ({"quant_method": "gptq"}, "quant_method"),
    ],
)
def test_a_wrong_setting_is_named(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?m)^  {key}"):
        potq.PoTConfig("pot4", **fields)


def test_weighted_scales_without_calibration(tiny_model: Any, tiny_folder: Path) -> None:
    config = potq.PoTConfig("pot4", scale_method="weighted")
    before = state(tiny_model)
    with pytest.raises(ConfigError, match=r"scale_method='weighted' .*; pass calibration=, or use 'mse'"):
        potq.quantize(tiny_model, config)
    assert_unchanged(tiny_model, before)
    with pytest.raises(ConfigError, match="scale_method='weighted'"):
        potq.load(tiny_folder, config)


@pytest.mark.parametrize("effort", ["gptq", "balanced", "best", "potptq"])
def test_an_effort_without_calibration(effort: str, tiny_model: Any, tiny_folder: Path) -> None:
    config = potq.PoTConfig("pot4", effort=effort)
    before = state(tiny_model)
    with pytest.raises(ConfigError, match=rf"effort='{effort}' needs calibration text: .* or use 'fast'"):
        potq.quantize(tiny_model, config)
    assert_unchanged(tiny_model, before)
    with pytest.raises(ConfigError, match=f"effort='{effort}' needs calibration text"):
        potq.load(tiny_folder, config)


def test_a_work_folder_of_other_files(tiny_model: Any, tokens: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    before = state(tiny_model)
    with pytest.raises(ConfigError, match="holds something else; give an empty folder"):
        potq.quantize(tiny_model, potq.PoTConfig("pot4"), [tokens], work_folder=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert_unchanged(tiny_model, before)
