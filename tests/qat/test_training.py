"""Runs of training from end to end: which weights they end with, what they log, and how they stop."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainingArguments

import potq
from potq.checkpoint.files import read_json
from potq.errors import ModelError
from potq.nn import precision
from potq.nn.losses import next_token_loss
from potq.nn.packed_model import packed_modules
from potq.qat import prepare
from potq.qat import text as text_module
from potq.qat.objective import Objective
from potq.qat.preparation import convert, load_scale_state, qat_modules
from potq.qat.recipe import OptimizationRecipe, TrainRecipe
from potq.qat.run import TrainingRun
from potq.qat.trainer import training_arguments
from qat_helpers import (
    Killed,
    checkpoints,
    evaluations,
    finish,
    fit,
    killing,
    logged,
    train,
    trained,
    training_folder,
    weights,
)

# ---- the best checkpoint -------------------------------------------------------------------------------------------


def spoiling(run: TrainingRun, recipe: TrainRecipe, at: int, kept: Path) -> Callable[[int, int, str], None]:
    """A progress that copies the checkpoint before step ``at`` to ``kept`` and makes the model bad."""

    def tell(step: int, steps: int, what: str) -> None:
        if step == at:
            shutil.copytree(training_folder(recipe) / f"checkpoint-{at - 2}", kept)
            with torch.no_grad():
                for module in qat_modules(run.model).values():
                    module.weight.mul_(-1)

    return tell


@pytest.mark.parametrize("scales", ["searched", "learned"])
def test_the_result_is_the_best_checkpoint_with_its_scales(
    scales: str, make: Callable[..., TrainRecipe], text: Path, tmp_path: Path
) -> None:
    qat, loss = {"scales": scales, "search_every": 1}, {"next_token": 1.0, "distillation": 0.0}
    recipe = make(qat=qat, loss=loss, data={"evaluation": str(text)})
    run = TrainingRun.load(recipe)
    texts = run.read()
    fit(run, texts, spoiling(run, recipe, 4, tmp_path / "kept"))
    found = evaluations(recipe)
    assert found[4] > found[2]
    assert found[6] > found[2]
    run.finish()
    expected = potq.load(recipe.model, dtype="float32")
    prepare(expected, recipe.config(), recipe.qat)
    expected.load_state_dict(load_file(tmp_path / "kept" / "model.safetensors"), strict=False)
    load_scale_state(expected, load_file(tmp_path / "kept" / "scales.safetensors"))
    convert(expected)
    packed = packed_modules(potq.load(recipe.output))
    for name, module in packed_modules(expected).items():
        assert torch.equal(packed[name].quantized.packed, module.quantized.packed), name
        assert torch.equal(packed[name].quantized.scale, module.quantized.scale), name


def test_a_huge_learning_rate_ends_where_it_began_to_hurt(make: Callable[..., TrainRecipe], text: Path) -> None:
    changes: dict[str, Any] = {"warmup": 0.9, "steps": 10, "learning_rate": 3.0}  # rates of 0, 1/3, 2/3 ...
    recipe = make(data={"evaluation": str(text)}, optimization=changes, loss={"next_token": 1.0, "distillation": 0.0})
    run, texts = trained(recipe)
    found = evaluations(recipe)
    del found[0]
    assert min(found, key=lambda step: found[step]) < 10
    assert mean_loss(run.model, texts.evaluation) == pytest.approx(min(found.values()), rel=1e-6)


@pytest.mark.parametrize("at", [None, 3, 5])
def test_patience_stops_early_however_often_the_run_is_killed(
    at: int | None, make: Callable[..., TrainRecipe], text: Path
) -> None:
    """With a rate of nearly nothing no checkpoint after the first is better."""
    options = {"steps": 20, "learning_rate": 1e-30, "scale_rate": 0.0, "patience": 2}
    recipe = make(data={"evaluation": str(text)}, optimization=options)
    if at is not None:
        with pytest.raises(Killed):
            train(recipe, killing(at))
    train(recipe)
    assert list(evaluations(recipe)) == [0, 2, 4, 6]
    assert checkpoints(recipe) == ["checkpoint-2", "checkpoint-6"]
    steps: list[int] = []
    finish(recipe, lambda step, *_: steps.append(step))
    assert not steps  # it was over already


# ---- evaluation ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def mean_loss(model: nn.Module, sequences: Tensor | None) -> float:
    assert sequences is not None
    model.eval()
    return float(torch.stack([next_token_loss(model(row[None]).logits, row[None]) for row in sequences]).mean())


@pytest.mark.parametrize("windows", [1, 4, 5])
def test_perplexity_is_that_of_all_sequences(windows: int, make: Callable[..., TrainRecipe], tmp_path: Path) -> None:
    """Batches of two, of which the last one may be a single sequence that is not like the others."""
    file = tmp_path / "evaluation.txt"
    file.write_text("the cat sat on the mat, then the other cat. " * 2 + "#! 12 '&' $ 77 ()[]{}<> ~~ " * 2)
    recipe = make(data={"evaluation": str(file), "evaluation_windows": windows}, optimization={"steps": 2})
    run, texts = trained(recipe)
    assert texts.evaluation is not None
    assert len(texts.evaluation) == windows
    last = [line for line in logged(recipe) if "eval_loss" in line][-1]
    expected = mean_loss(run.model, texts.evaluation)
    assert last["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert last["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)


def test_the_last_step_is_evaluated_too(make: Callable[..., TrainRecipe], text: Path) -> None:
    recipe = make(data={"evaluation": str(text)}, optimization={"steps": 5})
    train(recipe)
    assert list(evaluations(recipe)) == [0, 2, 4, 5]


# ---- how it is computed --------------------------------------------------------------------------------------------


def test_accumulated_batches_make_the_gradient_of_one(make: Callable[..., TrainRecipe]) -> None:
    options = {"steps": 3, "clip": 1e9, "learning_rate": 1e-30, "scale_rate": 0.0, "save_every": 10}
    whole, halves = (
        make("whole", optimization=options | {"batch": 4}),
        make("halves", optimization=options | {"accumulation": 2}),
    )
    train(whole)
    train(halves)
    for one, two in zip(logged(whole)[:3], logged(halves)[:3], strict=True):
        assert one["grad_norm"] > 0
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.parametrize("scales", ["searched", "learned"])
def test_bfloat16(scales: str, make: Callable[..., TrainRecipe], text: Path) -> None:
    changes: dict[str, Any] = {"qat": {"scales": scales, "search_every": 2}, "data": {"evaluation": str(text)}}
    exact, fast = make("exact", **changes), make("fast", **changes, optimization={"dtype": "bfloat16"})
    train(exact)
    run = train(fast)
    for a, b in zip(logged(exact), logged(fast), strict=True):
        assert b.get("eval_loss", b.get("loss", 0.0)) == pytest.approx(
            a.get("eval_loss", a.get("loss", 0.0)), rel=0.05, abs=0.02
        )
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert run.model(torch.zeros(1, 2, dtype=torch.long)).logits.dtype == torch.float32
    assert "forward" not in vars(run.model)  # no autocast stays behind
    run.finish()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_product_is_slow(dtype: str, make: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU without bfloat16 products they take float32's way, on the way back too; float32 is as it was."""
    monkeypatch.setattr(precision, "is_slow", lambda dtype: dtype == torch.bfloat16)
    shapes: set[tuple[int, ...]] = set()
    own = precision._product
    monkeypatch.setattr(precision, "_product", lambda *args: shapes.add((*args[0].shape, *args[1].shape)) or own(*args))
    run = train(make("run", optimization={"dtype": dtype}))
    out, inside = next(parameter for name, parameter in run.model.named_parameters() if "up_proj" in name).shape
    ways = [{(n, inside, inside, out), (n, out, out, inside), (out, n, n, inside)} for n, *_ in shapes]  # n tokens
    assert any(shapes >= way for way in ways) if dtype == "bfloat16" else not shapes


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.filterwarnings("error::FutureWarning")
def test_gradient_checkpointing_gives_equal_weights(
    model: str, make: Callable[..., TrainRecipe], tiny_folder: Path, gpt2_folder: Path
) -> None:
    folder = gpt2_folder if model == "gpt2" else tiny_folder
    plain, saving = make("plain", folder), make("saving", folder, optimization={"gradient_checkpointing": True})
    finish(plain)
    finish(saving)
    assert weights(saving.output) == weights(plain.output)


def test_kept_predictions_of_the_whole_vocabulary_are_those_of_a_teacher_that_runs(make: Callable[..., TrainRecipe]) -> None:
    online, kept = make("online"), make("kept", loss={"top_k": 260})
    train(online)
    assert train(kept).teacher is None  # it is not needed any more
    for a, b in zip(logged(online)[:-1], logged(kept)[:-1], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-2, abs=1e-4)  # they are float16


@pytest.mark.parametrize("scales", ["fixed", "searched", "learned"])
def test_training_lowers_the_loss_it_is_told_to(scales: str, make: Callable[..., TrainRecipe], text: Path) -> None:
    loss = {"next_token": 1.0, "distillation": 0.0}
    recipe = make(qat={"scales": scales}, loss=loss, data={"evaluation": str(text)}, optimization={"steps": 12})
    run = train(recipe)
    assert run.teacher is None
    found = evaluations(recipe)
    assert found[12] < found[0] - 1.0
    report = run.finish()
    assert report is not None
    assert {entry.algorithm for entry in report.modules} == {f"qat/{scales}"}


def test_training_goes_on_from_a_packed_checkpoint(
    make: Callable[..., TrainRecipe], packed_folder: Path, text: Path, tokens: Tensor
) -> None:
    """With a rate of nothing it is the same checkpoint; its config is used."""
    options = {"learning_rate": 1e-30, "scale_rate": 0.0, "steps": 2}
    recipe = make(start=str(packed_folder), quantization={}, optimization=options)
    recipe = recipe.model_copy(update={"quantization": {}})
    finish(recipe)
    assert torch.equal(potq.load(recipe.output)(tokens).logits, potq.load(packed_folder)(tokens).logits)


def test_full_precision_is_the_control(make: Callable[..., TrainRecipe], tokens: Tensor, text: Path) -> None:
    recipe = make(loss={"next_token": 1.0, "distillation": 0.0}, data={"evaluation": str(text)})
    recipe = recipe.model_copy(update={"quantization": {"preset": "none"}})
    with pytest.raises(Killed):
        train(recipe, killing(3))
    assert finish(recipe) is None
    assert "quantization_config" not in read_json(recipe.output / "config.json")
    model = potq.load(recipe.output)
    assert not packed_modules(model)
    assert not torch.equal(model(tokens).logits, potq.load(recipe.model)(tokens).logits)
    assert evaluations(recipe)[6] < evaluations(recipe)[0]
    assert potq.load_tokenizer(recipe.output)("the cat")["input_ids"]


# ---- text that the teacher writes ----------------------------------------------------------------------------------


def test_text_that_the_teacher_writes(make: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "_ROWS", 3)
    changes = {"data": {"text": "self", "tokens": 100, "length": 12}}
    whole, killed = make("whole", **changes), make("killed", **changes)
    finish(whole)

    def tell(done: int, total: int, speed: str) -> None:
        assert total == 108
        if done > 50:
            raise Killed

    run = TrainingRun.load(killed)
    with pytest.raises(Killed):
        run.read(tell)
    assert (training_folder(killed) / "text" / "text-00000.safetensors").is_file()
    with pytest.raises(Killed):
        train(killed, killing(3))
    finish(killed)
    assert weights(killed.output) == weights(whole.output)
    assert logged(killed) == logged(whole)


def test_a_model_that_is_only_needed_to_write_is_not_kept(make: Callable[..., TrainRecipe]) -> None:
    data = {"text": "self", "tokens": 64}
    run = TrainingRun.load(make(data=data, loss={"next_token": 1.0, "distillation": 0.0}, optimization={"steps": 1}))
    texts = run.read()
    assert run.teacher is None
    assert texts.train.shape == (4, 16)


# ---- what is no number ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run(
    value: float, make: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make(optimization={"accumulation": 2})
    original, calls = Objective.__call__, []

    def broken(self: Objective, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        calls.append(batch["index"].tolist())
        return original(self, model, batch) * (value if len(calls) == 8 else 1.0)

    folder = training_folder(recipe)
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "__call__", broken)
        with pytest.raises(ModelError) as error:
            train(recipe)
    assert str(error.value) == (
        f"the loss is {value} at step 4, sequences {calls[7]}; lower learning_rate. "
        f"The last good checkpoint is {folder / 'checkpoint-2'}"
    )
    assert checkpoints(recipe) == ["checkpoint-2"]
    finish(recipe)


def test_before_the_first_checkpoint_there_is_only_the_start(
    make: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objective, "__call__", lambda self, model, batch: model(batch["input_ids"]).logits.sum() * math.nan)
    with pytest.raises(ModelError, match=r"nan at step 1, sequences \[\d+, \d+\].* is the start"):
        train(make())


def test_weights_that_are_no_numbers_are_not_saved(make: Callable[..., TrainRecipe]) -> None:
    """A step may break them after its loss was fine."""
    recipe = make()
    run = TrainingRun.load(recipe)
    texts = run.read()

    def tell(step: int, steps: int, what: str) -> None:
        if step == 4:
            run.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan

    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj\.weight has NaN .* after step 4;.* is .*checkpoint-2$"):
        fit(run, texts, tell)
    assert checkpoints(recipe) == ["checkpoint-2"]


# ---- int8 activations ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(potq.native.missing() is not None, reason="no compiled kernels")
def test_a_model_trained_with_int8_activations_runs_so(make: Callable[..., TrainRecipe], tokens: Tensor) -> None:
    recipe = make(qat={"activations": "int8"})
    run = train(recipe)
    run.model.eval()
    with torch.no_grad():
        expected = run.model(tokens).logits
        for module in qat_modules(run.model).values():
            module.settings = module.settings.model_copy(update={"activations": "float"})
        unrounded = run.model(tokens).logits
    run.finish()
    found = potq.load(recipe.output)(tokens).logits
    error, rounding = (found - expected).abs().max(), (unrounded - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()
    assert error < rounding / 100  # it is no accident


# ---- where and in what it computes ---------------------------------------------------------------------------------


def test_one_process_takes_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer would use DataParallel, whose replicas have no parameters."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    arguments = training_arguments(OptimizationRecipe(batch=2), tmp_path, evaluates=False, seed=0)
    assert arguments._n_gpu == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_teacher_computes_in_the_recipes_dtype(dtype: str, make: Callable[..., TrainRecipe]) -> None:
    for loss in ({}, {"top_k": 4}):
        recipe = make(optimization={"dtype": dtype, "steps": 1}, loss=loss)
        run = TrainingRun.load(recipe)
        texts = run.read()
        seen: set[str] = set()
        assert run.teacher is not None
        run.teacher.model.layers[0].mlp.up_proj.register_forward_hook(
            lambda module, args, output, seen=seen: seen.add(str(output.dtype).removeprefix("torch."))
        )
        fit(run, texts)
        assert seen == {dtype}
        shutil.rmtree(training_folder(recipe))
