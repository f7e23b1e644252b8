"""Whether ``potq quantize`` reads a model block by block: as it is told, or where the whole does not fit in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potq.cli import console, processes
from potq.cli.recipe import CalibrationRecipe, QuantizeRecipe
from potq.errors import ConfigError

if TYPE_CHECKING:
    from potq.config import Effort

_TEXT = "name a text with --calibration (the model could write it only as a whole)"


def check_stream(settings: QuantizeRecipe, text: CalibrationRecipe | None) -> None:
    """Refuse a wish that has no effect, or that cannot be.

    Raises:
        ConfigError: says what to do.
    """
    from potq.checkpoint.source import resolve
    from potq.data.text import SELF

    effort = settings.config().effort
    if settings.stream is not None and (text is None or (effort is not None and not effort.calibrated)):
        raise ConfigError("--stream and --no-stream change nothing without an effort that calibrates; leave them out")
    if not settings.stream or text is None:
        return
    if settings.device is not None or processes.count() > 1:
        raise ConfigError("--stream is for one process that reads into the CPU's memory; leave out --device, or torchrun")
    if settings.allocates:
        raise ConfigError("a budget or candidates need gradients of the whole model in memory; leave out --stream, or them")
    if text.text == SELF:
        raise ConfigError(f"--stream has one block in memory at a time; {_TEXT}")
    if resolve(settings.model).gguf_file is not None:
        raise ConfigError(f"{settings.model} is a GGUF file, which is read as a whole; --stream is for safetensors")


def streams(settings: QuantizeRecipe, text: CalibrationRecipe, effort: Effort, kind: type | None) -> bool:
    """Whether the model is to be streamed; says so on stderr where nobody asked for it.

    Args:
        kind: its class; None: a GGUF file's.

    Raises:
        ConfigError: the model does not fit in memory, or is to be streamed, and cannot be as things are.
    """
    from potq.checkpoint.source import resolve
    from potq.data.text import SELF
    from potq.nn.classes import predicts_next

    if kind is not None and not predicts_next(kind):
        if settings.stream:
            raise ConfigError(f"--stream is for causal language models, and {settings.model} is loaded as {kind.__name__}")
        return False
    if settings.device is not None or processes.count() > 1:
        return False
    where = resolve(settings.model)
    if settings.stream is not None or not effort.calibrated or where.folder is None or where.gguf_file is not None:
        return _told(settings.stream or False, effort)
    from potq.checkpoint.memory import memory_available, memory_needed

    needed, available = memory_needed(where.folder, effort, settings.dtype), memory_available()
    if needed <= available:
        return False
    sizes = (
        f"{settings.model} needs about {needed / 1e9:.1f} GB of memory as a whole, {available / 1e9:.1f} GB are available"
    )
    if settings.allocates or text.text == SELF:
        remedy = "leave out budget and candidates" if settings.allocates else _TEXT
        raise ConfigError(f"{sizes}; to have it streamed block by block, {remedy}; or try --no-stream")
    console.note(f"{sizes}: streaming it block by block (--no-stream loads it as a whole)")
    return _told(True, effort)


def _told(stream: bool, effort: Effort) -> bool:
    if stream and effort.scope == "model":
        console.note("streamed, the refinement of the whole model becomes one of each block (scope block)")
    return stream
