"""Which effort a call takes, and what it needs: calibration, a work folder, a whole model."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from potq.config import EFFORTS, Effort, PoTConfig
from potq.errors import ConfigError
from potq.nn.parts import parts_of
from potq.nn.refusals import require_causal
from potq.numerics.scheme import WEIGHTED_METHODS
from potq.ptq.chain import Blocks, check_settings


def settle_effort(
    model: nn.Module, config: PoTConfig, calibration: Any, blocks: Blocks | None, *, fed: bool
) -> tuple[Effort, list[str]]:
    """The effort that this model and calibration allow, and remarks if it is not the config's.

    Raises:
        ConfigError, ModelError: as :func:`potq.quantize`.
    """
    given, remarks = calibration is not None, list[str]()
    effort = chosen_effort(config, given=given)
    if parts_of(model) is not None:
        effort, remarks = effort_in_parts(effort)
    if fed:
        check_settings(config, effort, blocks, given=given)
        return effort, remarks
    require_calibration(config, given=given)
    if blocks is not None:
        raise ConfigError("blocks= is for modules that run on inputs; those of a language model on text are found")
    if effort.scope == "model" or effort.weigh_tokens:
        require_causal(model, predicting=True)
    return effort, remarks


def chosen_effort(config: PoTConfig, *, given: bool) -> Effort:
    """The config's effort; without one ``"balanced"`` if calibration is ``given``, unless it is for a scale method."""
    if config.effort is not None:
        return config.effort
    return EFFORTS["balanced" if given and config.scale_method == "mse" else "fast"]


def check_in_parts(effort: Effort, work_folder: str | os.PathLike[str] | None, *, fed: bool, shared: bool) -> None:
    """Refuse to do without calibration by text, or without a work folder, for a model that is read in parts."""
    if shared:
        raise ConfigError("a model that is streamed is quantized by one process; leave the group out")
    if fed:
        raise ConfigError("a model that is streamed is calibrated by batches of token ids; load it without stream=True")
    if not effort.calibrated:
        raise ConfigError(
            f"effort={effort.name!r} needs no stream=True: potq.load(folder, config) rounds weights while they are read"
        )
    if work_folder is None:
        raise ConfigError("a model that is streamed needs a work_folder: finished blocks leave memory for it")


def effort_in_parts(effort: Effort) -> tuple[Effort, list[str]]:
    """What ``effort`` is for a model that is read in parts, and remarks on that."""
    if effort.scope != "model":
        return effort, []
    remark = f"effort {effort.name!r} refines the whole model in memory; streamed, it was refined block by block"
    return effort.model_copy(update={"scope": "block"}), [remark]


def require_calibration(config: PoTConfig, *, given: bool) -> None:
    """Refuse what needs calibration text if none is given.

    Raises:
        ConfigError: says what to pass.
    """
    if given:
        return
    if config.scale_method in WEIGHTED_METHODS:
        raise ConfigError(f"scale_method={config.scale_method!r} needs calibration text; pass calibration=, or use 'mse'")
    effort = chosen_effort(config, given=False)
    if effort.calibrated:
        raise ConfigError(
            f"effort={effort.name!r} needs calibration text: call potq.quantize(model, config, calibration) with "
            "the loaded model (potq.load_calibration makes batches, from the model itself if need be), or use 'fast'"
        )
