"""Damaged and hostile folders: a clear error, never a crash."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import potq
from potq import Engine, PoTConfig
from potq.errors import EngineError

from .test_families import tiny


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "m"
    model = tiny("llama-tied")
    potq.quantize(model, PoTConfig("mxpot"))
    potq.save(model, folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "m"))


def opens(folder: Path) -> None:
    Engine(folder).logits([1, 2, 3])


def header(folder: Path) -> tuple[dict[str, Any], bytes]:
    raw = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(folder: Path, head: dict[str, Any] | str, data: bytes) -> None:
    text = (head if isinstance(head, str) else json.dumps(head)).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def change_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    head, data = header(folder)
    change(head)
    write(folder, head, data)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        part = config
        *path, last = key.split("__")
        for step in path:
            part = part[step]
        part[last] = value
    (folder / "config.json").write_text(json.dumps(config))


NAME = "model.layers.0.mlp.up_proj.weight_packed"
HEADERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "overlap": (lambda h: h[NAME].update(data_offsets=[x - 1 for x in h[NAME]["data_offsets"]]), "overlaps|gap"),
    "beyond": (lambda h: h[NAME].update(data_offsets=[2**40, 2**40 + 10]), "behind the end"),
    "backwards": (lambda h: h[NAME].update(data_offsets=[10, 5]), "invalid data_offsets"),
    "negative": (lambda h: h[NAME].update(data_offsets=[-5, 5]), "invalid data_offsets"),
    "huge numbers": (lambda h: h[NAME].update(data_offsets=[0, 1e300]), "invalid data_offsets"),
    "overflow": (lambda h: h[NAME].update(shape=[2**32, 2**32]), "overflows"),
    "negative shape": (lambda h: h[NAME].update(shape=[-1, 5]), "invalid shape"),
    "fractional shape": (lambda h: h[NAME].update(shape=[1.5, 5]), "invalid shape"),
    "other shape": (lambda h: h[NAME].update(shape=h[NAME]["shape"][::-1]), "expected U8"),
    "other dtype": (lambda h: h[NAME].update(dtype="I8"), "expected U8"),
    "unknown dtype": (lambda h: h[NAME].update(dtype="X9"), "unknown dtype"),
    "no dtype": (lambda h: h[NAME].pop("dtype"), "no dtype"),
    "missing": (lambda h: h.update({"model.x": h.pop(NAME)}), "have no model.layers.0.mlp.up_proj"),
    "not an object": (lambda h: h.update({NAME: 3}), "no dtype"),
    "many dimensions": (lambda h: h[NAME].update(shape=[1] * 9), "too many dimensions"),
}


def test_the_good_one_opens(folder: Path) -> None:
    opens(folder)


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, folder: Path) -> None:
    change, message = HEADERS[name]
    change_header(folder, change)
    with pytest.raises(EngineError, match=message):
        opens(folder)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**32, 1 << 25])
def test_header_lengths(length: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(EngineError, match="header has"):
        opens(folder)


@pytest.mark.parametrize("keep", [0, 3, 8, 100, -1])
def test_truncated_files(keep: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(EngineError, match="copy it again"):
        opens(folder)


def test_bytes_behind_the_last_tensor(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(EngineError, match="goes on behind"):
        opens(folder)


JSONS = {
    "{" * 100000: "nested|not valid JSON",
    "[" * 100000: "nested",
    '{"a":' * 70 + "1" + "}" * 70: "nested",
    '{"a": 1, "a": 2}': "twice",
    '{"a": 01}': "not valid JSON",
    '{"a": 1,}': "not valid JSON|string",
    '{"a": NaN}': "not valid JSON",
    '{"a": "\\ud800"}': "surrogate|not valid JSON",
    '{"a": 1e999}': "out of range",
    '{"a": "x': "ends within a string",
    "[]": "no JSON object",
    "": "not valid JSON",
    "{} x": "goes on",
    "{}": "model_type",
}


@pytest.mark.parametrize("text", JSONS)
def test_json(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(EngineError, match=JSONS[text]):
        opens(folder)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "huge hidden": ({"hidden_size": 2**31}, "hidden_size is not an integer in"),
    "other hidden": ({"hidden_size": 128}, "expected"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is not an integer in"),
    "heads do not divide": ({"num_key_value_heads": 3}, "cannot share"),
    "many layers": ({"num_hidden_layers": 1000}, "have no model.layers.2"),
    "fewer layers": ({"num_hidden_layers": 1}, "does not explain"),
    "text for a number": ({"hidden_size": "64"}, "not an integer"),
    "unknown family": ({"model_type": "mamba"}, "engine knows llama"),
    "unknown rope": ({"rope_parameters__rope_type": "yarn"}, "'yarn' is not supported"),
    "unknown activation": ({"hidden_act": "mish"}, "engine knows silu"),
    "other method": ({"quantization_config__quant_method": "gptq"}, "'gptq'"),
    "newer version": ({"quantization_config__version": 2}, "format version"),
    "bits": ({"quantization_config__scheme__grid__bits": 64}, "2 to 8 bits"),
    "magnitudes": ({"quantization_config__scheme__grid__magnitudes": [1]}, "magnitudes"),
    "group": ({"quantization_config__scheme__group_size": 0}, "group_size"),
    "row scales beside float16": ({"quantization_config__embedding__row_scale": True}, "row_scale wants"),
    "pattern": ({"quantization_config__targets": [["(a+)+(?=b)", {}]]}, "pattern"),
    "context": ({"max_position_embeddings": 2**31 - 1}, "no memory|addresses|"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name: str, folder: Path) -> None:
    changes, message = CONFIGS[name]
    change_config(folder, **changes)
    if name == "context":  # address space is all that it takes
        with contextlib.suppress(EngineError):
            opens(folder)
        return
    with pytest.raises(EngineError, match=message):
        opens(folder)


@pytest.fixture(scope="module")
def good_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "m"
    model = tiny("qwen3-moe")
    potq.quantize(model, PoTConfig("mxpot", row_scale=True))
    potq.save(model, folder)
    return folder


@pytest.fixture
def experts(good_experts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_experts, tmp_path / "experts"))


EXPERTS: dict[str, tuple[dict[str, Any], str]] = {
    "more chosen": ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7, but num_local_experts is 6"),
    "none chosen": ({"num_experts_per_tok": 0}, "num_experts_per_tok is not an integer in"),
    "more experts": ({"num_local_experts": 7}, r"mlp.gate.weight is F32 \[6, 64\], expected"),
    "an old name": ({"num_local_experts": None, "num_experts": 5}, "mlp.gate.weight is"),
    "many experts": ({"num_local_experts": 2**40}, "num_local_experts is not an integer in"),
    "large experts": ({"num_local_experts": 2**14, "moe_intermediate_size": 2**22}, "are too many"),
    "no experts": ({"num_local_experts": 0}, "have no model.layers.0.mlp.gate_proj"),
    "wider": ({"moe_intermediate_size": 41}, "stacked_gate_up_proj.weight_packed is U8"),
    "norm": ({"norm_topk_prob": 1}, "norm_topk_prob is neither true nor false"),
    "step": ({"decoder_sparse_step": 0}, "decoder_sparse_step is not an integer in"),
    "other step": ({"decoder_sparse_step": 2}, "have no model.layers.0.mlp.gate_proj"),
    "a dense layer": ({"mlp_only_layers": [0]}, "have no model.layers.0.mlp.gate_proj"),
    "a layer that is none": ({"mlp_only_layers": [2]}, r"mlp_only_layers has an entry that is no layer in 0\.\.1"),
    "layers that are no list": ({"mlp_only_layers": 0}, "mlp_only_layers is not a list"),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_configs_of_experts(name: str, experts: Path) -> None:
    changes, message = EXPERTS[name]
    change_config(experts, **changes)
    with pytest.raises(EngineError, match=message):
        opens(experts)


@pytest.mark.parametrize(
    ("end", "at", "message"),
    [
        ("stacked_down_proj.weight_scale", -1, "negative, infinite or NaN"),
        ("stacked_gate_up_proj.weight_packed", -1, "code outside the grid"),
        ("stacked_gate_up_proj.weight_row_scale", -1, "negative|infinity or NaN"),
    ],
)
def test_damage_in_the_last_expert(end: str, at: int, message: str, experts: Path) -> None:
    opens(experts)
    name = f"model.layers.1.mlp.experts.{end}"
    damage(experts, name, at, 0x33 if end.endswith("packed") else 255)
    with pytest.raises(EngineError, match=f"{name}: .*({message})"):
        opens(experts)


@pytest.mark.parametrize("name", ["gate.weight", "experts.stacked_down_proj.weight_scale"])
def test_a_part_of_the_experts_that_is_missing(name: str, experts: Path) -> None:
    whole = f"model.layers.0.mlp.{name}"
    change_header(experts, lambda h: h.update({f"{whole}_packed": h.pop(whole)}))  # no router is packed
    with pytest.raises(EngineError, match=f"have no {whole}, which"):
        opens(experts)


def damage(folder: Path, name: str, at: int, value: int) -> None:
    head, data = header(folder)
    begin, end = head[name]["data_offsets"]
    changed = bytearray(data)
    changed[begin + at if at >= 0 else end + at] = value
    write(folder, head, bytes(changed))


def test_scales_and_codes(folder: Path) -> None:
    damage(folder, "model.layers.1.self_attn.k_proj.weight_scale", 3, 255)
    with pytest.raises(EngineError, match=r"layers.1.self_attn.k_proj.weight_scale: .* negative, infinite or NaN"):
        opens(folder)


def test_codes_outside_the_grid(folder: Path) -> None:
    damage(folder, "model.layers.1.self_attn.k_proj.weight_packed", 3, 0x33)  # a repeated magnitude's second code
    with pytest.raises(EngineError, match="code outside the grid"):
        opens(folder)


@pytest.mark.parametrize("high", [0x7E, 0xBC])
def test_a_float16_scale_that_is_nan_or_negative(folder: Path, high: int) -> None:
    damage(folder, "model.embed_tokens.weight_scale", -1, high)
    with pytest.raises(EngineError, match="negative, infinite or NaN"):
        opens(folder)


def test_an_index_that_leads_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "whole.safetensors")  # it would be read before an index
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(EngineError, match="not in the folder"):
        opens(folder)


def test_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is missing"):
        opens(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(EngineError, match="is not a file"):
        opens(tmp_path)


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_never_crashes(seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    file = folder / rng.choice(["config.json", "model.safetensors"])
    raw = bytearray(file.read_bytes())
    limit = len(raw) if file.suffix == ".json" else min(len(raw), 3000)
    for _ in range(rng.choice([1, 2, 8])):
        raw[rng.randrange(limit)] = rng.choice([rng.randrange(256), *b'0123456789{}[]",:-e'])
    file.write_bytes(raw)
    with contextlib.suppress(EngineError):  # damage may be harmless
        engine = Engine(folder, context=64)
        engine.logits([1, 2, 3])
        engine.generate([1], max_new_tokens=3, temperature=1.0).finish()


def test_a_file_that_changes_while_it_is_read(folder: Path) -> None:
    """Whatever the reader meets, it is a model or an error: written over in place, truncated, replaced, gone."""
    file = folder / "model.safetensors"
    good = file.read_bytes()
    rng, done, errors = random.Random(5), threading.Event(), 0

    def write() -> None:
        while not done.is_set():
            file.write_bytes(good)
            file.write_bytes(good[: rng.randrange(len(good))])
            with file.open("r+b") as opened:
                opened.truncate(len(good))  # zeros
            (folder / "new").write_bytes(good)
            (folder / "new").replace(file)
            file.unlink()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            try:
                opens(folder)
            except EngineError:
                errors += 1
    finally:
        done.set()
        writer.join()
    assert errors
    file.write_bytes(good)
    opens(folder)


def continuation(folder: Path) -> tuple[list[int], str | None]:
    generation = Engine(folder).generate([3, 4, 5], max_new_tokens=4).finish()
    return list(generation.ids), generation.finish_reason


def test_end_tokens(folder: Path) -> None:
    """Those of generation_config.json come before config.json's, one or several."""
    (folder / "generation_config.json").unlink()
    change_config(folder, eos_token_id=None)
    endless, end = continuation(folder)
    assert (len(endless), end) == (4, "length")
    first = endless[0]
    change_config(folder, eos_token_id=first)
    assert continuation(folder) == ([], "token")
    for ids in ([130, first], first):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        change_config(folder, eos_token_id=130)
        assert continuation(folder) == ([], "token")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 130}))
    change_config(folder, eos_token_id=first)
    assert continuation(folder) == (endless, "length")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    assert continuation(folder) == ([], "token")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"eos_token_id": "a"}', '{"eos_token_id": [-1]}', '{"eos_token_id": 2147483648}']
)
def test_end_tokens_that_are_none(text: str, folder: Path) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(EngineError, match=r"generation_config\.json"):
        opens(folder)


@pytest.mark.parametrize("level", [2**62, -(2**62), 2**53])
def test_levels_of_any_size(level: int, folder: Path) -> None:
    change_config(folder, quantization_config__scheme__grid={"bits": 2, "encoding": "table", "table": [-1, 0, 1, level]})
    with pytest.raises(EngineError, match="expected U8"):  # the codes have 4 bits
        opens(folder)


def test_a_name_that_would_act_on_a_terminal(folder: Path) -> None:
    change_config(folder, model_type="a\x1b[2J\x7f\x9b2J\xe9")
    with pytest.raises(EngineError, match=r"'a\?\[2J\?\?2Jé'"):
        opens(folder)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with its base"])
def test_an_adapter_is_refused_by_the_library_itself(alone: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potq.engine.engine._folder", str)  # Python would refuse it before
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    if alone:
        (folder / "config.json").unlink()
    with pytest.raises(EngineError, match=r"of an adapter \(LoRA\) for the model 'org/base'; merge it into that with peft"):
        opens(folder)


def test_scales_whose_product_is_beyond_float32(tmp_path: Path) -> None:
    model = tiny("llama")
    potq.quantize(model, PoTConfig("mxpot", row_scale=True))
    potq.save(model, tmp_path / "m")
    opens(tmp_path / "m")
    name = "model.layers.0.mlp.up_proj.weight_scale"
    damage(tmp_path / "m", name, -1, 254)
    damage(tmp_path / "m", "model.layers.0.mlp.up_proj.weight_row_scale", -1, 0x78)
    with pytest.raises(EngineError, match=f"{name}: has weights beyond float32"):
        opens(tmp_path / "m")


def test_nan_weights_are_an_error_not_a_token(tmp_path: Path) -> None:
    model = tiny("llama")
    model.lm_head.weight.data[5, 5] = float("nan")
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(EngineError, match="not finite"):
        Engine(tmp_path / "m").generate([1, 2]).finish()
    model.model.norm.weight.data[0] = torch.inf
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(EngineError, match="infinity or NaN"):
        Engine(tmp_path / "m")
