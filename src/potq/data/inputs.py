"""Inputs by name, to calibrate models with that are no causal language models: of text, images or recordings.

Encoders and classifiers get windows of plain text between the tokens that their tokenizer puts around one. The encoder of an
encoder-decoder gets the first half of a window, and the decoder the second, which continues it. Where the encoder reads
images or recordings, the decoder gets what the model itself writes about them.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potq.data.media import media_files, read_image, read_recording
from potq.data.text import read_documents, require_unmeasured
from potq.data.tokens import calibration_windows, choose_window, require_own_tokens
from potq.errors import ConfigError, DataError, MissingDependencyError, ModelError
from potq.nn.classes import Reads, has_decoder, is_base, predicts_next, reads, reads_both

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW, COUNT = 512, 64
_WRITTEN = 48  # tokens that a decoder writes about an image or a recording, at most


def load_inputs(
    source: str | os.PathLike[str],
    model: PreTrainedModel,
    processor: Any,
    *,
    window: int | None = None,
    count: int = COUNT,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """Inputs to calibrate ``model`` with, as :func:`potq.quantize` takes them.

    Each is a dict of keyword arguments, of one text, image or recording.

    Args:
        source: for a model that reads text, what :func:`~potq.data.text.read_documents` takes; else a folder of images, or
            of WAV files.
        model: one of transformers' that is no causal LM, for which there is :func:`potq.load_calibration`.
        processor: the model's tokenizer, image processor or feature extractor, e.g. of :func:`potq.load_processor`.
        window: tokens of a text; by default 512 or the model's limit, whichever is less.
        count: how many; what is too short, or too few, gives fewer.
        seed: of the choice among more.

    Raises:
        DataError: a source that is missing, damaged or empty; text shorter than one window; recordings of another rate.
        ConfigError: a window of what is no text; fewer than one input.
        ModelError: a causal LM, or a model that reads something else.
        MissingDependencyError: images without Pillow.

    Example:
        >>> import potq
        >>> model = potq.load("tiny", model_class="LlamaModel")
        >>> inputs = potq.load_inputs("pydoc", model, potq.load_tokenizer("tiny"), window=32, count=4)
        >>> len(inputs), sorted(inputs[0]), inputs[0]["input_ids"].shape
        (4, ['attention_mask', 'input_ids'], torch.Size([1, 32]))
    """
    kind = type(model)
    what = check_inputs(source, kind, window=window)
    if count < 1:
        raise ConfigError(f"invalid number of calibration inputs {count}; use at least 1")
    if what == "text":
        return list(_texts(os.fspath(source), model, processor, window, count, seed))
    chosen = _chosen(media_files(source, what), count, seed)
    found = _images(chosen, processor) if what == "images" else _recordings(chosen, processor)
    return [_of_decoder(model, _fitting(model, each)) for each in found]


def check_inputs(source: str | os.PathLike[str], kind: type, *, window: int | None = None) -> Reads:
    """What a model of class ``kind`` reads, after a look at whether ``source`` has it; no weight is needed.

    Raises:
        DataError, ConfigError, ModelError, MissingDependencyError: as :func:`load_inputs`.
    """
    what = reads(kind)
    if predicts_next(kind):
        raise ModelError(f"{kind.__name__} predicts the next token; potq.load_calibration makes its token batches")
    if what is None or reads_both(kind):
        main = getattr(kind, "main_input_name", "something else")
        found = "more than one kind of input" if what else f"{main}, which is no text, image or recording"
        raise ModelError(
            f"{kind.__name__} reads {found}; give potq.quantize its inputs in Python: calibration=[{{...}}, ...], a dict of "
            "keyword arguments each"
        )
    if what == "text":
        require_unmeasured(os.fspath(source))
    else:
        if window is not None:
            raise ConfigError(f"window has no effect: {kind.__name__} reads {what}; leave it out")
        media_files(source, what)
    return what


def _texts(
    source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, window: int | None, count: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    window = choose_window(model, window, WINDOW)
    before, after = _ends(tokenizer)
    inside = window - len(before) - len(after)
    continued = window - 1 if _gets_decoder_inputs(model) else 0
    if inside < 1:
        raise DataError(f"a window of {window} tokens has no room for text between {len(before) + len(after)} special ones")
    try:
        tokens = calibration_windows(
            tokenizer, read_documents(source), window=inside + continued, windows=count, seed=seed, special=False
        )
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    require_own_tokens(model, tokens, source)
    for row in tokens:
        ids = torch.tensor([[*before, *row[:inside].tolist(), *after]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if continued:
            inputs["decoder_input_ids"] = torch.tensor([[_start(model), *row[inside:].tolist()]])
        yield inputs


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and after a text."""
    text: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    start = next((at for at in range(len(whole)) if whole[at : at + len(text)] == text), 0)
    return whole[:start], whole[start + len(text) :]


def _gets_decoder_inputs(model: PreTrainedModel) -> bool:
    """Whether its decoder reads a text of its own; classifiers shift the encoder's, as their heads expect."""
    return has_decoder(type(model)) and (model.can_generate() or is_base(type(model)))


def _start(model: PreTrainedModel) -> int:
    """The token that a decoder's text starts with."""
    settings = (model.config, getattr(model, "generation_config", None), model.config.get_text_config(decoder=True))
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        for each in settings:
            if isinstance(token := getattr(each, name, None), int):
                return token
    raise ModelError(f"the config of {type(model).__name__} has no decoder_start_token_id, which its decoder starts with")


def _chosen(files: list[Path], count: int, seed: int) -> list[Path]:
    """As many of them, in their order, every choice equally likely."""
    if len(files) <= count:
        return files
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
    return [files[index] for index in sorted(order[:count].tolist())]


def _images(files: Iterable[Path], processor: Any) -> Iterator[dict[str, Any]]:
    for file in files:
        yield _prepared(file, lambda image: processor(images=image, return_tensors="pt"), read_image(file))


def _recordings(files: Iterable[Path], extractor: Any) -> Iterator[dict[str, Any]]:
    rate = int(extractor.sampling_rate)
    for file in files:
        samples = read_recording(file, rate).numpy()
        yield _prepared(file, lambda each: extractor(each, sampling_rate=rate, return_tensors="pt"), samples)


def _prepared(file: Path, prepare: Any, content: Any) -> dict[str, Any]:
    try:
        return dict(prepare(content))
    except ImportError as error:
        raise MissingDependencyError(f"what prepares {file.name} for the model needs more: {error}") from error
    except Exception as error:  # processors raise many kinds
        raise DataError(f"{file} cannot be prepared for the model ({type(error).__name__}: {error}); take it out") from error


def _fitting(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """What the model takes of ``inputs``, floats in its own dtype."""
    known = inspect.signature(type(model).forward).parameters
    tensors = {name: value for name, value in inputs.items() if name in known and isinstance(value, Tensor)}
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in tensors.items()}


@torch.no_grad()
def _of_decoder(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """``inputs``, and for a decoder the tokens that it writes, greedily."""
    if not _gets_decoder_inputs(model):
        return inputs
    ids = torch.tensor([[_start(model)]])
    given = {name: value.to(model.device) for name, value in inputs.items()}
    if model.can_generate():
        from transformers import GenerationConfig, GenerationMixin

        ends = getattr(model.generation_config, "eos_token_id", None)
        settings = GenerationConfig(
            max_new_tokens=_WRITTEN, do_sample=False, decoder_start_token_id=ids.item(), eos_token_id=ends, pad_token_id=0
        )
        # plain decoding: Whisper's own cuts recordings in parts and wants more of a config
        ids = GenerationMixin.generate(model, **given, generation_config=settings).cpu()
    return {**inputs, "decoder_input_ids": ids}
