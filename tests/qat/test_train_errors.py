"""What a recipe cannot mean is refused at the start, with a remedy, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import potq
from potq.config import PoTConfig
from potq.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, ModelError
from potq.nn.properties import tensor_bytes
from potq.qat import device, prepare
from potq.qat import run as module
from potq.qat.device import estimate_bytes
from potq.qat.recipe import TrainRecipe
from potq.qat.run import TrainingRun
from potq.qat.settings import QATSettings
from qat_helpers import Killed, killing, train, training_folder, weights

Make = Callable[..., TrainRecipe]


def everything_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test fails if it loads one."""
    monkeypatch.setattr(module, "load", None)
    monkeypatch.setattr(module, "load_tokenizer", None)


# ---- keys and values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimisation": {}}, r"invalid TrainRecipe:\n  optimisation: unknown key"),
        ({"data": {"lenght": 8}}, r"data: .*\n  lenght: unknown key"),
        ({"qat": {"scales": "moved"}}, r"qat: .*\n  scales: .*'fixed', 'searched' or 'learned'"),
        ({"data": {"text": "self"}}, "text: self needs tokens: how many the teacher is to write"),
        ({"data": {"length": 1}}, r"data: .*\n  length: .*greater than or equal to 2"),
        ({"loss": {"distillation": 0}}, "all weights are 0; set next_token, distillation or hidden"),
        ({"loss": {"temperature": 0}}, r"loss: .*\n  temperature: .*greater than 0"),
        ({"loss": {"top_k": 0}}, r"loss: .*\n  top_k: .*greater than or equal to 1"),
        ({"optimization": {"learning_rate": float("inf")}}, r"optimization: .*\n  learning_rate: .*finite"),
        ({"optimization": {"warmup": 1.0}}, r"optimization: .*\n  warmup: .*less than 1"),
        ({"optimization": {"patience": 3}}, r"optimization\.patience needs data\.evaluation"),
        ({"quantization": {"preset": "none"}}, "preset none trains in full precision; it takes no start and no other key"),
    ],
)
def test_keys_and_values(changes: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"quantization": {"preset": "pot5000"}}, ConfigError, "pot5000"),
        ({"quantization": {"groupsize": 32}}, ConfigError, "groupsize"),
        ({"quantization": {"effort": "best"}}, ConfigError, r"quantization\.effort is potq quantize's: quantize first"),
        ({"quantization": {"scale_method": "fisher"}}, ConfigError, "scale_method='fisher' needs text; quantize first"),
        ({"data": {"text": "missing.txt"}}, DataError, r"cannot read the text missing\.txt"),
        ({"data": {"evaluation": "missing.txt"}}, DataError, r"cannot read the text missing\.txt"),
        ({"data": {"text": "no/such:config:train"}}, (DataError, MissingDependencyError), "no/such:config:train"),
        ({"teacher": "./none"}, CheckpointError, "does not exist"),
        ({"start": "./none"}, CheckpointError, "does not exist"),
        ({"data": {"evaluation": "self"}}, DataError, "cannot read the text self .*; give a file, a dataset"),
        ({"optimization": {"report_to": ("wandb",)}}, MissingDependencyError, "wandb is not installed; pip install wandb"),
    ],
)
def test_before_a_model_is_loaded(changes: dict[str, Any], kind: type[Exception], message: str, make: Make) -> None:
    recipe = make(**changes)
    with pytest.raises(kind, match=message):
        TrainingRun.load(recipe)
    assert not training_folder(recipe).exists()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "variables",
    [
        {"ACCELERATE_USE_FSDP": "true"},
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"},
        {"ACCELERATE_USE_DEEPSPEED": "true"},
    ],
)
def test_launchers_that_shard_in_other_ways(variables: dict[str, str], make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match="sharded by FSDP2 only; start it with accelerate launch --use_fsdp --fsdp_version 2"
    ):
        TrainingRun.load(make())


@pytest.mark.parametrize("changes", [{"model": "gpt2"}, {"teacher": "gpt2"}], ids=["model", "teacher"])
def test_a_model_or_teacher_of_the_hub_offline(changes: dict[str, Any], make: Make) -> None:
    with pytest.raises(CheckpointError, match=r"^gpt2 is not here, and the hub cannot be reached \(HF_HUB_OFFLINE is set\)"):
        train(make(**changes))


def test_more_predictions_than_there_are_tokens(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before the text is read, or written."""
    with pytest.raises(ConfigError, match="invalid top_k 261 for a vocabulary of 260 tokens"):
        TrainingRun.load(make(loss={"top_k": 261}))


@pytest.mark.usefixtures("no_model")
def test_an_output_that_exists_needs_force(make: Make, packed_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="packed exists; choose another output folder, or pass --force"):
        TrainingRun.load(make("packed"))


def test_force_replaces_it(make: Make, packed_folder: Path) -> None:
    before = weights(packed_folder)
    train(make("packed", force=True, optimization={"steps": 1})).finish()
    assert weights(packed_folder) != before


# ---- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": "./missing"}, CheckpointError, "missing"),
        ({"data": {"length": 129}}, DataError, "129 tokens exceed the model's limit of 128; use a window of 128"),
        ({"start": "./missing"}, CheckpointError, "missing"),
        ({"quantization": {"ignore": ["no_such"]}}, ConfigError, "no_such"),
        ({"quantization": {"scale_method": "fisher"}}, ConfigError, "needs text"),
        ({"teacher": "./missing"}, CheckpointError, "missing"),
    ],
)
def test_models_that_do_not_fit(changes: dict[str, Any], kind: type[Exception], message: str, make: Make) -> None:
    recipe = make(**changes)
    with pytest.raises(kind, match=message):
        TrainingRun.load(recipe)
    assert not training_folder(recipe).exists()


def test_a_teacher_of_other_tokens(make: Make, tiny_model: Any, tmp_path: Path) -> None:
    tiny_model.resize_token_embeddings(264)
    tiny_model.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ModelError, match="the student's vocabulary has 260 tokens, the teacher's 264"):
        TrainingRun.load(make(teacher=str(tmp_path / "teacher")))


def test_too_little_text(make: Make, tmp_path: Path) -> None:
    run = TrainingRun.load(make(optimization={"batch": 16}))
    with pytest.raises(DataError, match=r"text\.txt gives 15 sequences of 16 tokens, less than one batch of 16; give more"):
        run.read()
    (tmp_path / "short.txt").write_text("the cat")
    run = TrainingRun.load(make("other", data={"evaluation": str(tmp_path / "short.txt")}))
    with pytest.raises(DataError, match=r"short\.txt: the text has \d tokens in 1 documents, less than one sequence of 16"):
        run.read()


# ---- an unfinished run of another recipe ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"optimization": {"learning_rate": 1e-5}}, "optimization"),
        ({"qat": {"scales": "fixed"}, "loss": {"top_k": 3}}, "loss, qat"),
    ],
)
def test_an_unfinished_run_with_other_settings_is_left_alone(
    changes: dict[str, Any], named: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, other = make(), make(**changes)
    with pytest.raises(Killed):
        train(recipe, killing(3))
    before = everything_in(training_folder(recipe))
    with monkeypatch.context() as patch:
        patch.setattr(module, "load", None)
        with pytest.raises(ConfigError, match=rf"with other settings \({named}\); go on with those, delete the folder, or"):
            TrainingRun.load(other)
    assert everything_in(training_folder(recipe)) == before
    assert TrainingRun.load(recipe).resumes == 2


def test_nor_with_another_text(make: Make, text: Path) -> None:
    """A file of the same name with other words in it."""
    recipe = make()
    with pytest.raises(Killed):
        train(recipe, killing(3))
    before = everything_in(training_folder(recipe))
    text.write_text(text.read_text().replace("cat", "dog"))
    with pytest.raises(ConfigError, match=r"with other settings \(the text itself\)"):
        TrainingRun.load(recipe).read()
    assert everything_in(training_folder(recipe)) == before


def test_nor_with_another_number_of_processes(make: Make) -> None:
    recipe = make()
    with pytest.raises(Killed):
        train(recipe, killing(3))
    file = training_folder(recipe) / "recipe.json"
    file.write_text(file.read_text().replace('"number of processes": 1', '"number of processes": 2'))
    with pytest.raises(ConfigError, match=r"with other settings \(number of processes\)"):
        TrainingRun.load(recipe).read()


def test_one_without_a_checkpoint_is_not_in_the_way(make: Make) -> None:
    with pytest.raises(Killed):
        train(make(), killing(1))
    train(make(seed=1)).finish()


# ---- memory --------------------------------------------------------------------------------------------------------


def test_what_is_certain_to_be_needed(make: Make, tiny_model: Any, tiny_folder: Path) -> None:
    teacher = potq.load(tiny_folder, dtype="float32")
    parameters, logits = sum(p.numel() for p in tiny_model.parameters()), 2 * 16 * 260
    alone = make(loss={"next_token": 1.0, "distillation": 0.0})
    assert estimate_bytes(tiny_model, alone) == 16 * parameters + 8 * logits
    assert estimate_bytes(tiny_model, make(), teacher) == 16 * parameters + 12 * logits + tensor_bytes(teacher)
    assert estimate_bytes(tiny_model, make(loss={"top_k": 4}), teacher) == estimate_bytes(tiny_model, alone)
    half = make(optimization={"dtype": "bfloat16", "batch": 1})
    assert estimate_bytes(tiny_model, half, teacher) == 16 * parameters + 5 * logits + tensor_bytes(teacher)
    prepare(tiny_model, PoTConfig("pot4", group_size=32), QATSettings(scales="learned"))
    assert estimate_bytes(tiny_model, alone) > 16 * parameters + 8 * logits


def test_fsdp_shares_what_belongs_to_weights(make: Make, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "processes", lambda: SimpleNamespace(num_processes=4))
    recipe = make(loss={"next_token": 1.0, "distillation": 0.0})
    whole = estimate_bytes(tiny_model, recipe)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert whole - estimate_bytes(tiny_model, recipe) == 12 * sum(p.numel() for p in tiny_model.parameters())


def test_more_memory_than_there_is_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make()
    needed = TrainingRun.load(recipe).memory
    held = 2 * tensor_bytes(potq.load(recipe.model, dtype="float32"))  # model and teacher are there already
    tell: Any = lambda free: monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))  # noqa: E731
    tell(needed - held)
    assert TrainingRun.load(recipe).memory == needed
    tell(needed // 1000)
    message = (
        r"training takes at least \d\.\d GB on cpu, activations on top; \d\.\d GB are available; use a smaller "
        r"optimization\.batch \(and more optimization\.accumulation\), loss\.top_k .*, optimization\.gradient_checkpointing"
    )
    with pytest.raises(ConfigError, match=message):
        TrainingRun.load(make("other"))
    assert not training_folder(make("other")).exists()


def test_processes_share_the_memory_of_a_machine(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = TrainingRun.load(make()).memory
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=needed))
    TrainingRun.load(make())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match="use a smaller"):
        TrainingRun.load(make())


def test_a_gpu_counts_its_own_memory(make: Make, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "training_device", lambda: torch.device("cuda", 0))
    recipe, needed = make(), estimate_bytes(tiny_model, make(), tiny_model)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (needed, 10**12))
    assert device.require_memory(tiny_model, recipe, tiny_model) == needed
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (needed - 1, 10**12))
    with pytest.raises(ConfigError, match=r"GB on cuda:0"):
        device.require_memory(tiny_model, recipe, tiny_model)
