"""What ``potq`` calibrates with: token batches, or what the class of another model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from potq.cli import console
from potq.cli.recipe import CalibrationRecipe, QuantizeRecipe
from potq.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WANTED = {"text": "a text file or a dataset", "images": "a folder of images", "audio": "a folder of .wav files"}


def check_class(kind: type, settings: QuantizeRecipe, text: CalibrationRecipe) -> None:
    """Look at all that can be wrong with calibration for a model of class ``kind`` before its weights are loaded.

    Raises:
        ConfigError: an effort, scale method or budget that is for language models; no calibration where it is needed.
        PotqError: calibration that the class does not read, or that is not there.
    """
    from potq.checkpoint.architecture import is_causal_name
    from potq.data.inputs import check_inputs
    from potq.data.text import SELF, check_text
    from potq.nn.classes import predicts_next, reads
    from potq.ptq.chain import check_settings
    from potq.ptq.effort import chosen_effort

    if predicts_next(kind):
        if text.text != SELF and not is_causal_name(kind.__name__):  # of others it was looked at before
            check_text(text.text, learned=True)
        return
    name, config = kind.__name__, settings.config()
    if settings.allocates:
        raise ConfigError(f"a budget and candidates are for causal language models, and {name} is none; name a --scheme")
    check_settings(config, chosen_effort(config, given=True), None, given=True)
    wanted = _WANTED.get(reads(kind) or "")
    if text.text == SELF and wanted is not None:
        raise ConfigError(f"{name} does not write its own calibration text; give --calibration, {wanted}, or --effort fast")
    if check_inputs(text.text, kind, window=text.window) == "text":
        check_text(text.text, learned=True)


def calibration_inputs(
    settings: QuantizeRecipe, recipe: CalibrationRecipe, model: PreTrainedModel
) -> list[dict[str, Tensor]]:
    """The recipe's inputs by name; says on stderr how many there are, for a source may hold few."""
    from potq.checkpoint.processors import load_processor
    from potq.data.inputs import load_inputs
    from potq.nn.classes import reads

    processor = load_processor(settings.model, model_class=settings.model_class)
    seed = recipe.seed if recipe.seed is not None else settings.seed
    with console.status(f"reading {recipe.text}"):
        inputs = load_inputs(recipe.text, model, processor, window=recipe.window, count=recipe.windows, seed=seed)
    what = {"text": "windows", "images": "images", "audio": "recordings"}[reads(type(model)) or "text"]
    console.note(f"calibration: {len(inputs)} {what}{_short(recipe, inputs)}, {recipe.text}")
    return inputs


def calibration_batches(
    recipe: CalibrationRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    seed: int,
    group: ProcessGroup | None = None,
) -> list[Tensor]:
    """The recipe's batches; says on stderr how many there are, for a text may be short."""
    from potq.data.calibration_text import load_calibration

    seed = recipe.seed if recipe.seed is not None else seed
    with console.progress_bar("calibration text") as update:
        tell = console.Forecast("calibration text", update)
        batches = load_calibration(
            recipe.text,
            model,
            tokenizer,
            window=recipe.window,
            windows=recipe.windows,
            seed=seed,
            progress=tell,
            group=group,
        )
    console.note(
        f"calibration: {len(batches)} windows{_short(recipe, batches)} of {batches[0].shape[1]} tokens, {recipe.text}"
    )
    return batches


def _short(recipe: CalibrationRecipe, found: list[Any]) -> str:
    """How many were asked for, where fewer are there."""
    return f" ({recipe.windows} asked for)" if len(found) < recipe.windows else ""
