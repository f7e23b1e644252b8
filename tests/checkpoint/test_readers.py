"""Every reader of packed folders, Python's and the engine's: they read alike what they know, and refuse what they do not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import potq
from potq.cli.app import app
from potq.errors import CheckpointError, ConfigError, EngineError, PotqError
from potq.numerics.features import FEATURES

GOLDEN = Path(__file__).parents[1] / "golden"
PACKED = sorted(file.parent.name for file in GOLDEN.glob("*/quant_report.json") if file.parent.name != "module")
NEW = "hashed-scales"  # no potq has it
NEW_FIELDS: dict[str, Any] = {"features": ["bit-planes", NEW], "hashes": {"a": 1}}  # with a key that it brings along


def quantization(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return fields


def change(folder: Path, fields: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "pot3_g32", tmp_path / "m"))


# ---- golden folders: of 0.1, which name no features, and of every feature


def test_every_feature_has_a_golden_folder_that_names_it() -> None:
    named = {feature for name in PACKED for feature in quantization(GOLDEN / name).get("features", [])}
    assert named == set(FEATURES)
    assert [name for name in PACKED if "features" not in quantization(GOLDEN / name)], "those of potq 0.1"


def _kind(name: str) -> str:
    kind: str = json.loads((GOLDEN / name / "config.json").read_text())["model_type"]
    return kind


REFUSED = {name: _kind(name) for name in PACKED if _kind(name) == "gpt_oss"}


@pytest.mark.parametrize("entry", ["potq.Engine", "potq-run"])
@pytest.mark.parametrize("name", REFUSED)
def test_the_engine_refuses_by_name_what_it_does_not_compute(name: str, entry: str) -> None:
    with pytest.raises(EngineError, match=f"model_type is '{REFUSED[name]}'; the engine knows llama"):
        ENTRIES[entry](GOLDEN / name)


@pytest.mark.parametrize("name", sorted(set(PACKED).difference(REFUSED)))
def test_the_engine_reads_it_as_the_modules_do(name: str) -> None:
    ids = list(range(12))
    with torch.inference_mode():
        expected = potq.load(GOLDEN / name, dtype=torch.float32).dequantize()(torch.tensor([ids])).logits[0]
    with potq.Engine(GOLDEN / name, threads=1, activations="float") as engine:  # its keys and values are float16
        assert torch.allclose(engine.logits(ids), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [name for name in PACKED if name.startswith("features")])
def test_a_folder_saved_again_names_the_same(name: str, tmp_path: Path) -> None:
    potq.save(potq.load(GOLDEN / name), tmp_path / "again")
    potq.load(GOLDEN / name).save_pretrained(tmp_path / "transformers")
    for again in ("again", "transformers"):
        assert quantization(tmp_path / again) == quantization(GOLDEN / name)


def test_every_way_to_pack_names_the_features(tiny_model: Any, tiny_folder: Path, tmp_path: Path) -> None:
    config = potq.PoTConfig("pot3s", embedding="mxfp4")
    potq.save(potq.load(tiny_folder, config), tmp_path / "streamed")
    AutoModelForCausalLM.from_pretrained(tiny_folder, quantization_config=config).save_pretrained(tmp_path / "transformers")
    trained = potq.load(tiny_folder)
    potq.qat.prepare(trained, config)
    potq.qat.convert(trained)
    potq.save(trained, tmp_path / "trained")
    potq.quantize(tiny_model, config)
    potq.save(tiny_model, tmp_path / "quantized")
    for way in ("streamed", "transformers", "trained", "quantized"):
        assert quantization(tmp_path / way)["features"] == ["bit-planes", "e8m0-scales", "signed-scales", "table-grids"], way


# ---- a feature of a newer potq


def inspect(folder: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(folder)])
    assert result.exception is not None
    raise result.exception


def potq_run(folder: Path) -> None:
    program = shutil.which("potq-run", path=Path(sys.executable).parent) or shutil.which("potq-run")
    if program is None:
        pytest.skip("potq-run is not installed")
    done = subprocess.run([program, folder, "1,2", "--ids"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    raise EngineError(done.stderr.removeprefix("potq-run: ").removesuffix("\n"))


ENTRIES: dict[str, Callable[[Path], Any]] = {
    "potq.load": potq.load,
    "from_pretrained": AutoModelForCausalLM.from_pretrained,
    "potq inspect": inspect,
    "potq.Engine": potq.Engine,
    "potq-run": potq_run,
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (NEW_FIELDS, f"uses the feature {NEW!r}, which this potq does not know; upgrade potq (pip install --upgrade potq)"),
        ({"version": 2}, "is of format version 2, this potq reads version 1; upgrade potq (pip install --upgrade potq)"),
    ],
)
def test_what_is_newer_is_refused_before_a_weight_is_read(
    entry: str, fields: dict[str, Any], problem: str, folder: Path
) -> None:
    weights = folder / "model.safetensors"
    raw = weights.read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    weights.write_bytes(raw[:length] + b"\xff" * (len(raw) - length))  # whoever reads them finds infinite scales
    change(folder, fields)
    with pytest.raises((CheckpointError, EngineError)) as caught:
        ENTRIES[entry](folder)
    assert str(caught.value) == f"{folder}/config.json {problem}"


# ---- whatever else is not known


def with_scheme(fields: dict[str, Any]) -> dict[str, Any]:
    return {"scheme": quantization(GOLDEN / "features_none")["scheme"] | fields}


def with_trellis(magnitudes: list[int], **fields: Any) -> dict[str, Any]:
    bits = len(magnitudes).bit_length()
    return with_scheme({"grid": {"bits": bits, "magnitudes": magnitudes}, "trellis": True, **fields})


def with_grid(fields: dict[str, Any]) -> dict[str, Any]:
    return with_scheme({"grid": quantization(GOLDEN / "features_none")["scheme"]["grid"] | fields})


UNKNOWN: dict[str, dict[str, Any]] = {
    "key": {"packing": "interleaved"},
    "embedding": {"embedding": 3},
    "targets": {"targets": None},
    "target": {"targets": [["q_proj", "pot9"]]},
    "longer target": {"targets": [["q_proj", with_scheme({})["scheme"], 1]]},
    "target twice": {"targets": [["q_proj", with_scheme({})["scheme"]]] * 2},
    "ignore": {"ignore": None},
    "ignored": {"ignore": [3]},
    "effort": {"effort": "heroic"},
    "effort's key": {"effort": {"luck": 3}},
    "effort's scope": {"effort": {"scope": "world"}},
    "scale method": {"scale_method": "guess"},
    "scale candidates": {"scale_candidates": "all"},
    "scheme's key": with_scheme({"packing": "interleaved"}),
    "group size": with_scheme({"group_size": "column"}),
    "no group size": with_scheme({"group_size": 0}),
    "scale dtype": with_scheme({"scale_dtype": "bfloat16"}),
    "row scale": with_scheme({"row_scale": "float32"}),
    "signed scale": with_scheme({"signed_scale": "maybe"}),
    "trellis": with_scheme({"trellis": "maybe"}),
    "trellis of E8M0 scales": with_trellis([1, 2, 4, 8], scale_dtype="e8m0"),
    "trellis of a tensor": with_trellis([1, 2, 4, 8], group_size="tensor"),
    "trellis over two bits": with_trellis([1, 4]),
    "trellis over a level twice": with_trellis([0, 1, 2, 4]),
    "rounding": with_scheme({"rounding": "stochastic"}),
    "grid's key": with_grid({"bias": 1}),
    "bits": with_grid({"bits": 9}),
    "encoding": with_grid({"encoding": "gray"}),
    "encoding that is no word": with_grid({"encoding": 3}),
    "magnitudes": with_grid({"magnitudes": [1]}),
    "magnitudes of two's complement": with_grid({"encoding": "twos-complement"}),
    "table of magnitudes": with_grid({"table": [1]}),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_both_readers_refuse_what_is_not_known(what: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "features_none", tmp_path / "m"))
    change(folder, UNKNOWN[what])
    with pytest.raises(ConfigError, match=re.escape(f"{folder}/config.json: ")) as caught:
        potq.load(folder)
    with pytest.raises(ConfigError) as again:
        AutoModelForCausalLM.from_pretrained(folder)
    assert str(again.value) == str(caught.value)
    with pytest.raises(EngineError, match=re.escape(f"{folder}/config.json: quantization_config: ")):
        potq.Engine(folder)


@pytest.mark.parametrize("part", ["zero_point", "outlier_index", "anything"])
def test_a_part_of_a_weight_that_is_not_known(part: str, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.0.mlp.up_proj.weight_{part}"
    save_file({**tensors, name: torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors holds {name}, a tensor that this potq does not know"):
        potq.load(folder)
    with pytest.raises(EngineError, match=f"the tensor '{name}', which config.json does not explain"):
        potq.Engine(folder)


def test_a_typo_in_a_config_of_ones_own_is_told_at_once(tiny_folder: Path) -> None:
    with pytest.raises(PotqError, match="the quantization config: invalid PoTConfig:\n  groupsize: unknown key"):
        AutoModelForCausalLM.from_pretrained(
            tiny_folder, quantization_config={"quant_method": "potq", "scheme": "pot4", "groupsize": 3}
        )
