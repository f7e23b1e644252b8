"""What is known to be wrong with a training run before anything is loaded, torch included."""

from __future__ import annotations

from pathlib import Path

from potq.checkpoint.files import check_source
from potq.config import PoTConfig
from potq.data.text import check_text
from potq.errors import ConfigError
from potq.files import check_destination
from potq.numerics.scheme import WEIGHTED_METHODS
from potq.qat.recipe import WRITTEN, TrainRecipe


def check_recipe(recipe: TrainRecipe) -> Path:
    """Look for everything that the recipe names; returns the output, links and ``~`` resolved.

    Raises:
        PotqError: a model, start, teacher or text that is not there, an output that is, or keys that exclude each other.
    """
    sources = [source for source in (recipe.model, recipe.start, recipe.teacher) if source is not None]
    target = check_destination(recipe.output, force=recipe.force, sources=sources)
    if (config := recipe.config()) is not None and recipe.start is None:
        require_no_text(config)
    for source in sources:
        check_source(source)
    if recipe.data.text != WRITTEN:
        check_text(recipe.data.text, learned=True)
    if recipe.data.evaluation is not None:
        check_text(recipe.data.evaluation)
    return target


def require_no_text(config: PoTConfig) -> None:
    """Refuse a config whose scales are found with calibration text.

    Raises:
        ConfigError: says what to do instead.
    """
    if config.scale_method in WEIGHTED_METHODS:
        raise ConfigError(f"scale_method={config.scale_method!r} needs text; quantize first and pass start=, or use 'mse'")
