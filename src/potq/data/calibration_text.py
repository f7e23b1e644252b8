"""Calibration text by name: what ``--calibration`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed import ProcessGroup

from potq.data.generate import BATCH, self_generated, self_generated_key
from potq.data.ranks import Ranks
from potq.data.text import SELF, read_documents, require_unmeasured
from potq.data.tokens import calibration_windows, choose_window
from potq.errors import DataError
from potq.nn.report import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW, WINDOWS = 512, 64


def load_calibration(
    source: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    window: int | None = None,
    windows: int = WINDOWS,
    seed: int = 0,
    batch: int = BATCH,
    progress: Progress | None = None,
    group: ProcessGroup | None = None,
) -> list[Tensor]:
    """Token batches ``(1, window)`` to calibrate ``model`` with, as :func:`potq.quantize` takes them.

    Args:
        source: ``"self"``: the model writes the text (see :func:`~potq.data.generate.self_generated`, which ``batch`` and
            ``progress`` are for); anything else: see :func:`~potq.data.text.read_documents`.
        tokenizer: the model's own. Only text that the model writes can do without.
        window: tokens per window; by default 512 or the model's limit, whichever is less.
        windows: how many; text that is too short gives fewer.
        seed: of the windows' places in the text, or of the text that the model writes.
        group: processes of torch.distributed that share the writing, a batch each at a time. All of them call this, and all
            get the same text as one process.

    Raises:
        DataError: text that is missing, damaged or shorter than one window; a window longer than the model's limit; the
            short name of a dataset, which is its split for measuring.
        MissingDependencyError: a dataset without the ``datasets`` library.
        ModelError: the model that writes the text puts out NaN.
        DistributedError: another process stopped.

    Example:
        >>> import potq
        >>> batches = potq.load_calibration("self", potq.load("tiny"), window=32, windows=4)
        >>> len(batches), batches[0].shape, batches[0].dtype
        (4, torch.Size([1, 32]), torch.int64)
    """
    window = choose_window(model, window, WINDOW)
    if source == SELF:
        options = {"window": window, "windows": windows, "seed": seed, "batch": batch}
        tokens = self_generated(model, **options, tokenizer=tokenizer, progress=progress, ranks=Ranks(group))
    elif tokenizer is None:
        raise DataError(f"the calibration text {source} needs the model's tokenizer; pass it, or use {SELF!r}")
    else:
        require_unmeasured(source)
        documents = read_documents(source)
        try:
            tokens = calibration_windows(tokenizer, documents, window=window, windows=windows, seed=seed)
        except DataError as error:
            raise DataError(f"{source}: {error}") from None
    return list(tokens.split(1))


def calibration_key(
    source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, window: int | None, windows: int, seed: int
) -> str | None:
    """What decides the batches of :func:`load_calibration`, beside the model's weights, where making them is much work.

    None for text that is read: its batches are quickly made, and say more.
    """
    if source != SELF:
        return None
    window = choose_window(model, window, WINDOW)
    return self_generated_key(model, tokenizer, window=window, windows=windows, seed=seed)
