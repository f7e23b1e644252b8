"""What can be wrong with a recipe of ``potq quantize``, found before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from potq.cli import processes
from potq.cli.recipe import CalibrationRecipe, QuantizeRecipe
from potq.cli.stream import check_stream
from potq.errors import ConfigError


def checked(settings: QuantizeRecipe, text: CalibrationRecipe | None) -> Path:
    """The output's folder, after a look at all that can be wrong before torch is loaded."""
    _check_processes(settings, text)
    from potq.checkpoint.architecture import class_name, is_causal_name
    from potq.checkpoint.files import check_dtype, check_shard_size, check_source, read_config
    from potq.config import check_candidates
    from potq.data.text import SELF, check_text
    from potq.files import check_destination

    check_shard_size(settings.max_shard_size)
    check_dtype(settings.dtype)
    check_stream(settings, text)
    if settings.allocates:
        check_candidates(settings.schemes)
    target = settings.output
    if not processes.number():  # the others write nothing, and may be on another machine
        target = check_destination(settings.output, force=settings.force, sources=[settings.model])
    where = check_source(settings.model, quantizing=True)
    if text is not None and text.text != SELF and is_causal_name(settings.model_class or class_name(read_config(where))):
        check_text(text.text, learned=True)  # what others read shows with their class
    return target


def _check_processes(settings: QuantizeRecipe, text: CalibrationRecipe | None) -> None:
    """Refuse what several processes would not share, and a wish for them where there is one."""
    count = processes.count()
    if count == 1 and settings.timeout is not None:
        raise ConfigError("timeout is for several processes, and this is one; start them with torchrun, or leave it out")
    if count > 1 and text is None:
        raise ConfigError(
            f"{count} processes share a calibrated run, and rounding to nearest is none; run potq in one process, or use "
            "--effort balanced"
        )
    if count > 1 and settings.allocates:
        what = "budget" if settings.budget is not None else "candidates"
        raise ConfigError(
            f"{what}: {count} processes do not share the choice of schemes; run potq in one, or give quantization.targets"
        )
