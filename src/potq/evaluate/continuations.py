"""How a model goes on with prompts from a text: greedily, and beside it how the text itself goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from potq.data.tokens import require_own_tokens
from potq.errors import DataError
from potq.nn.properties import evaluation_mode
from potq.nn.report import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 100, 64, 64
BATCH = 16  # continuations written at a time


class Prompts(NamedTuple):
    """Places in a text, and how it goes on there."""

    prompts: Tensor
    """Token ids, int64 ``(count, prompt_tokens)``."""
    truths: Tensor
    """The tokens that follow, int64 ``(count, new_tokens)``."""


def prompts_of(
    tokens: Tensor, count: int = PROMPTS, *, prompt_tokens: int = PROMPT_TOKENS, new_tokens: int = NEW_TOKENS
) -> Prompts:
    """Evenly spaced windows of a text: each a prompt and its true continuation; none overlaps another.

    Args:
        tokens: the whole text's token ids, 1-D (see :func:`potq.data.tokens.tokenize`).

    Raises:
        DataError: the text has too few tokens, or a number is not positive.
    """
    for name, value in (("count", count), ("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
        if value < 1:
            raise DataError(f"invalid {name} {value}; use at least 1")
    size = prompt_tokens + new_tokens
    stride = len(tokens) // count
    if stride < size:
        raise DataError(
            f"the text has {len(tokens)} tokens, room for {len(tokens) // size} prompts of {prompt_tokens} tokens with "
            f"continuations of {new_tokens}, not for {count}; give more text, or ask for fewer or shorter ones"
        )
    windows = tokens[: count * stride].view(count, stride)[:, :size]
    return Prompts(windows[:, :prompt_tokens], windows[:, prompt_tokens:])


def continuations(
    model: PreTrainedModel,
    prompts: Sequence[Tensor] | Tensor,
    *,
    new_tokens: int = NEW_TOKENS,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> list[Tensor]:
    """The likeliest next token, again and again, until EOS: token ids on the CPU, each 1-D, without prompt and EOS.

    What the model's generation config says of sampling, beams and penalties is left out; its EOS tokens count. The batch
    size changes nothing but the rounding of the model's products, which decides where two tokens are all but equally likely.

    Args:
        prompts: token ids, each 1-D, of any lengths; or ``(prompts, tokens)``.
        new_tokens: at most so many.
        batch: continuations written at a time. A larger one is faster, and takes more memory for keys and values.

    Raises:
        DataError: an empty prompt, one too long for the model, or a size that is not positive.
    """
    _check_sizes(model, prompts, new_tokens, batch)
    began, written, found = time.perf_counter(), 0, []
    with evaluation_mode(model):
        for start in range(0, len(prompts), batch):
            some = _continue(model, list(prompts[start : start + batch]), new_tokens)
            found += some
            written += sum(map(len, some))
            if progress is not None:
                progress(len(found), len(prompts), f"{written / (time.perf_counter() - began):.0f} tokens/s")
    return found


def _check_sizes(model: PreTrainedModel, prompts: Sequence[Tensor] | Tensor, new_tokens: int, batch: int) -> None:
    for name, value in (("new_tokens", new_tokens), ("batch", batch)):
        if value < 1:
            raise DataError(f"invalid {name} {value}; use at least 1")
    for prompt in prompts:
        require_own_tokens(model, prompt, "a prompt")
    lengths = [len(prompt) for prompt in prompts]
    if 0 in lengths:
        raise DataError(f"prompt {lengths.index(0)} is empty; give at least one token")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and max(lengths, default=0) + new_tokens > limit:
        raise DataError(
            f"a prompt of {max(lengths)} tokens and {new_tokens} new ones exceed the model's limit of {limit}; use fewer"
        )


def _continue(model: PreTrainedModel, prompts: list[Tensor], new_tokens: int) -> list[Tensor]:
    from transformers import GenerationConfig

    ends = _eos(model)
    greedy = GenerationConfig(  # spelled out: what is left open, generate() takes from the model's own
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        use_cache=True,
        max_new_tokens=new_tokens,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,  # any token: before a prompt it is masked, after EOS cut off
    )
    ids, mask = (
        pad_sequence(rows, batch_first=True, padding_side="left").to(model.device)
        for rows in (prompts, [torch.ones_like(prompt) for prompt in prompts])
    )
    written = model.generate(ids, attention_mask=mask, generation_config=greedy)[:, ids.shape[1] :].cpu()
    return [row[: _first(torch.isin(row, torch.tensor(ends, dtype=row.dtype)))] for row in written]


def _eos(model: PreTrainedModel) -> list[int]:
    eos = model.generation_config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def _first(marks: Tensor) -> int | None:
    """The index of the first one that is true; None if there is none."""
    found = marks.nonzero()
    return int(found[0]) if len(found) else None
