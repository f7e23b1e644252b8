"""Models of every class through the command line: quantized, saved, loaded as what they were; refused where they cannot."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import class_models
import potq
from class_models import CONFIGS, MULTIMODAL
from cli_helpers import invoke, refused, succeed
from potq.checkpoint.loading import find_tokenizer
from potq.errors import CheckpointError, ConfigError, DataError, ExportError, ModelError
from potq.nn.packed import PackedModule
from potq.nn.packed_model import packed_modules

ANSWERING = ["T5ForConditionalGeneration", "BartForConditionalGeneration"]
OTHERS = [name for name in CONFIGS if name not in MULTIMODAL]


class _Folders(dict[str, Path]):
    """A folder for each class, made when a test wants it."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, name: str) -> Path:
        self[name] = class_models.save(name, self._root / name)
        return self[name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of every class; and what calibrates: a text, images, recordings."""
    root = tmp_path_factory.mktemp("classes")
    (root / "text.txt").write_text("The cat sat on the mat; zwölf Boxkämpfer jagten ihn. " * 40)
    found = _Folders(root)
    found["text"], found["audio"] = root / "text.txt", class_models.recordings(root / "audio")
    found["images"] = class_models.images(root / "images")
    return found


@pytest.fixture(scope="module")
def packed(folders: dict[str, Path]) -> Callable[[str], Path]:
    """The packed folder of a class, made once; a test only reads it."""

    @cache
    def made(name: str) -> Path:
        folder = folders[name].with_name(f"{name}-packed")
        potq.save(potq.load(folders[name], CONFIG), folder, find_tokenizer(folders[name]))
        return folder

    return made


def _calibration(name: str, folders: dict[str, Path]) -> Path:
    return folders["images" if name.startswith("ViT") else "audio" if name.startswith("Whisper") else "text"]


CONFIG = potq.PoTConfig("pot4", group_size=16)
DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
LATE = ["Qwen2VL", "Mistral3", "LlamaForSeq", "T5EncoderModel", "BartForSeq"]  # calibrated like others here
deep = [pytest.mark.slow, pytest.mark.skipif(not DEEP, reason="another class stands for it: make check-deep")]
CASES = [
    pytest.param(name, effort, marks=deep if effort == "balanced" and name.startswith(tuple(LATE)) else [])
    for name in CONFIGS
    for effort in ("fast", "balanced")
]
FEW = ("calibration.windows=3",)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "effort"), CASES)
def test_a_class_is_quantized_saved_and_loaded_as_itself(
    name: str, effort: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    out, kind = tmp_path / "out", getattr(transformers, name)
    words: list[Any] = ["--scheme", "apot4:group_size=16", "--effort", effort]
    if effort != "fast":
        words += ["--calibration", _calibration(name, folders), *FEW]
        words += [] if name[:3] in ("ViT", "Whi") else ["calibration.window=24"]
    found = json.loads(succeed("quantize", folders[name], out, *words, "--json"))
    algorithms = {entry["name"]: entry["algorithm"] for entry in found["modules"]}
    linears = [entry for entry in found["modules"] if entry["kind"] == "linear"]
    assert len(linears) >= 8
    if effort == "balanced":
        assert {algorithms[entry["name"]] for entry in linears} == {"gptq+descent"}
        assert not found["remarks"]
    loaded, own = potq.load(out), kind.from_pretrained(out)
    assert isinstance(loaded, kind)
    assert len(packed_modules(loaded)) == len(packed_modules(own)) >= len(found["modules"])
    assert torch.equal(class_models.output(loaded, name), class_models.output(own, name))
    assert json.loads((out / "config.json").read_text())["architectures"] == [name]
    exact = class_models.output(potq.load(folders[name]), name)
    error = (class_models.output(loaded, name) - exact).square().mean() / exact.var()
    assert error < 0.2
    for file in ("preprocessor_config.json", "processor_config.json"):
        assert (out / file).exists() == (folders[name] / file).exists()
    card = (out / "README.md").read_text()
    assert ("potq generate" in card) == (name in [*MULTIMODAL, *ANSWERING])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_loaded_is_what_was_quantized(name: str, folders: dict[str, Path], packed: Callable[[str], Path]) -> None:
    """In place, packed while it loads, and loaded from the folder."""
    model = potq.load(folders[name])
    potq.quantize(model, CONFIG)
    expected = class_models.output(model, name)
    for again in (potq.load(packed(name)), potq.load(folders[name], CONFIG)):
        assert torch.equal(class_models.output(again, name), expected)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "WhisperForConditionalGeneration"])
def test_a_killed_run_of_two_lists_of_blocks_goes_on(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potq.resume import WorkFolder

    save, kept = WorkFolder.save, []

    def dies(folder: WorkFolder, block: str, tensors: dict[str, torch.Tensor]) -> None:
        kept.append(block)
        if len(kept) == 4:
            raise KeyboardInterrupt
        save(folder, block, tensors)

    monkeypatch.setattr(WorkFolder, "save", dies)
    words = ["--effort", "gptq", "--calibration", _calibration(name, folders), *FEW]
    result = invoke("quantize", folders[name], tmp_path / "out", *words)
    assert result.exit_code == 130
    assert "3 blocks are kept in" in " ".join(result.stderr.split())
    again = invoke("quantize", folders[name], tmp_path / "out", *words)
    assert again.exit_code == 0, again.exception
    assert "resuming: 3 blocks done" in again.stderr
    assert kept == [f"block-{number:04}" for number in (0, 1, 2, 3, 3)]
    assert not (tmp_path / ".out.work").exists()
    assert invoke("quantize", folders[name], tmp_path / "other", *words).exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "other" / "model.safetensors").read_bytes()


# ---- --class


def test_another_class_of_the_same_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    words = [folders["BertForSequenceClassification"], tmp_path / "out", "--class", "BertModel"]
    succeed("quantize", *words)
    assert type(potq.load(tmp_path / "out")).__name__ == "BertModel"
    planned = json.loads(succeed("inspect", words[0], "--class", "BertModel", "--json"))
    assert not any(entry["name"].startswith("classifier") for entry in planned["modules"])
    whole = json.loads(succeed("inspect", words[0], "--json"))
    assert any(entry["name"] == "classifier" for entry in whole["modules"])
    assert "--class shows" in refused(ConfigError, "inspect", tmp_path / "out", "--class", "BertModel")


def _config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


BERT, VIT, WHISPER = "BertModel", "ViTForImageClassification", "WhisperForConditionalGeneration"
TEXT = "--calibration pydoc"
MISTAKES: list[tuple[str, str, Any, str]] = [
    (BERT, "--class BertForMaskedLn", ConfigError, "no model of class 'BertForMaskedLn'; did you mean 'BertForMaskedLM'?"),
    (BERT, "--class BertTokenizer", ConfigError, "transformers has no model of class 'BertTokenizer'"),
    (BERT, "--class BertForMaskedLM", ModelError, "of class BertModel has no cls.predictions"),
    (BERT, "--class ViTModel", ModelError, "is of the model type bert, and a ViTModel is of vit"),
    (BERT, "--effort gptq", ConfigError, "BertModel does not write its own calibration text; give --calibration, a text"),
    (BERT, "--calibration none.txt", DataError, "cannot read the text none.txt"),
    (BERT, "--calibration wikitext2", DataError, "calibrate and train on"),
    (BERT, f"{TEXT} --effort best", ConfigError, "effort='best' refines what a language model predicts"),
    (BERT, f"{TEXT} --scale-method fisher", ConfigError, "needs the loss of a language model"),
    (BERT, f"{TEXT} --budget 3", ConfigError, "a budget and candidates are for causal language models"),
    (BERT, f"{TEXT} calibration.window=100", DataError, "exceed the model's limit of 64"),
    (BERT, f"{TEXT} calibration.window=2", DataError, "a window of 2 tokens has no room for text between 2 special ones"),
    (VIT, "--calibration FILE", DataError, "is no folder here; the model takes images"),
    (VIT, "--calibration AUDIO", DataError, "holds no images (.png, "),
    (VIT, "--effort gptq", ConfigError, "give --calibration, a folder of images, or"),
    (VIT, "--calibration IMAGES calibration.window=9", ConfigError, "window has no effect: ViT"),
    (WHISPER, "--calibration IMAGES", DataError, "holds no audio (.wav)"),
    ("LlavaForConditionalGeneration", "--calibration IMAGES", DataError, "images"),
]


@pytest.mark.parametrize(("name", "words", "kind", "message"), MISTAKES)
def test_mistakes_are_named_and_nothing_is_written(
    name: str, words: str, kind: Any, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    paths = {"FILE": folders["text"], "IMAGES": folders["images"], "AUDIO": folders["audio"]}
    told = refused(kind, "quantize", folders[name], tmp_path / "out", *(paths.get(word, word) for word in words.split()))
    assert message in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        (None, r"names no class under architectures; name the class with --class .*, one of Bert"),
        ([], "names no class under architectures"),
        (["BertForEverything"], "names the class BertForEverything, which transformers lacks; name the class with --class"),
        (["T5ForConditionalGeneration"], "is of the model type bert, and a T5ForConditionalGeneration is of t5"),
    ],
)
def test_a_config_whose_class_cannot_be_used(
    architectures: Any, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["BertModel"], tmp_path / "bert")
    _config(folder, architectures=architectures)
    for command in (("inspect", folder), ("quantize", folder, tmp_path / "out")):
        with pytest.raises(ModelError, match=message):
            raise invoke(*command).exception or AssertionError("no error")
    succeed("quantize", folder, tmp_path / "out", "--class", "BertModel")


def test_a_damaged_image_and_a_recording_of_another_rate(folders: dict[str, Path], tmp_path: Path) -> None:
    images = shutil.copytree(folders["images"], tmp_path / "images")
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:200])
    words = ["quantize", folders["ViTForImageClassification"], tmp_path / "out", "--calibration", images]
    assert "images/2.png is no image that can be read" in refused(DataError, *words)
    slow = class_models.recordings(tmp_path / "slow", rate=8000)
    words = ["quantize", folders["WhisperForConditionalGeneration"], tmp_path / "out", "--calibration", slow]
    assert "0.wav has 8000 samples a second, the model takes 16000; convert it: ffmpeg" in refused(DataError, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "slow"]


def test_a_processor_or_tokenizer_that_is_missing(folders: dict[str, Path], tmp_path: Path) -> None:
    vit = shutil.copytree(folders["ViTForImageClassification"], tmp_path / "vit")
    (vit / "preprocessor_config.json").unlink()
    words = ["--calibration", folders["images"]]
    assert "has no preprocessor_config.json" in refused(CheckpointError, "quantize", vit, tmp_path / "out", *words)
    succeed("quantize", vit, tmp_path / "out")  # nothing of it is needed
    bert = shutil.copytree(folders["BertModel"], tmp_path / "bert")
    for file in bert.glob("tokenizer*"):
        file.unlink()
    message = refused(CheckpointError, "quantize", bert, tmp_path / "other", "--calibration", folders["text"])
    assert "has no tokenizer" in message


# ---- other commands


@pytest.mark.parametrize("name", OTHERS)
def test_commands_of_language_models_refuse_a_class_by_name(
    name: str, folders: dict[str, Path], packed: Callable[[str], Path], tmp_path: Path
) -> None:
    model, folder = folders[name], packed(name)
    said = f"is a {name}; "
    assert said in refused(ModelError, "eval", folder, "--text", folders["text"])
    assert said in refused(ModelError, "compare", model, "--text", folders["text"], "--schemes", "pot3")
    for target, output in (("gguf", "out.gguf"), ("onnx", "onnx"), ("compressed-tensors", "ct")):
        assert said in refused(ModelError, "export", folder, tmp_path / output, "--to", target)
        assert not (tmp_path / output).exists()
    assert "levels" in json.loads(succeed("inspect", folder, "--json"))
    if name not in ANSWERING:
        assert said in refused(ModelError, "generate", folder, "the cat")


@pytest.mark.parametrize("name", ANSWERING)
def test_an_encoder_decoder_answers(name: str, packed: Callable[[str], Path]) -> None:
    words = ["generate", packed(name), "the cat", "-n", "5"]
    written = json.loads(succeed(*words, "--json"))
    model, tokens = potq.load(packed(name)), potq.load_tokenizer(packed(name))
    potq.kernels.set_activations(model, "int8")
    ids = model.generate(torch.tensor([tokens("the cat")["input_ids"]]), max_new_tokens=5, do_sample=False)[0, 1:]
    assert written["tokens"] == len(ids)
    assert written["text"] == tokens.decode(ids, skip_special_tokens=True)
    assert written["path"] == "modules"
    assert succeed(*words).rstrip("\n") == written["text"].rstrip("\n")


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_multimodal_model_is_a_language_model_with_towers(
    name: str, folders: dict[str, Path], packed: Callable[[str], Path], tmp_path: Path
) -> None:
    model = potq.load(packed(name))
    towers = [module for path, module in model.named_modules() if "vision" in path or "visual" in path]
    assert towers
    assert not any(isinstance(module, PackedModule) for module in towers)
    assert json.loads(succeed("eval", packed(name), "--text", folders["text"], "--window", "16", "--windows", "2", "--json"))
    assert succeed("generate", packed(name), "the", "-n", "2").startswith("the")
    for target in ("gguf", "onnx"):
        result = invoke("export", packed(name), tmp_path / "out.gguf", "--to", target)
        assert isinstance(result.exception, (ExportError, ModelError)), result.exception
