"""Calibration without data: the model writes its own text (LLM-QAT, arXiv 2305.17888, section 3.1).

A text starts with a random token, goes on with the likeliest ones for a few steps, so that it becomes plausible, and is then
sampled from what the model predicts. All randomness is drawn beforehand, one number for each token: the batch size changes
nothing but the rounding of the model's products.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potq.data.ranks import ALONE, Ranks
from potq.data.tokens import choose_window
from potq.errors import DataError, ModelError
from potq.nn.parts import parts_of
from potq.nn.properties import evaluation_mode
from potq.nn.refusals import require_causal, require_weights
from potq.nn.report import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32  # sequences written side by side: a step reads all weights once, whatever their number
GREEDY = 4  # likeliest tokens after the random one; the paper takes 3 to 5


@torch.no_grad()
def self_generated(
    model: PreTrainedModel,
    *,
    window: int,
    windows: int,
    seed: int,
    batch: int = BATCH,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """``windows`` texts of ``window`` tokens that ``model`` writes, int64 ``(windows, window)`` on the CPU.

    Each begins with the model's BOS token, if its config has one, and a random token. After an EOS token the next one begins
    in the same window, and sees nothing of the one before. Seed and batch size decide the result; torch's global generator
    is not used.

    Args:
        batch: texts written at a time. A larger one is faster, and takes more memory for keys and values.
        tokenizer: random tokens are never its special or added ones. Without it only BOS, EOS and padding are known.
        ranks: processes that share the batches; each gets all texts, as one process writes them.

    Raises:
        DataError: a window longer than the model's limit, or a size that is not positive.
        ModelError: the model's output is NaN, or the model is not in memory, or predicts no tokens.
    """
    require_causal(model, predicting=True)
    if model.device.type == "meta" or parts_of(model) is not None:  # where the text would be written
        require_weights(model)
    window = choose_window(model, window, window)
    for name, count in (("windows", windows), ("batch", batch)):
        if count < 1:
            raise DataError(f"invalid {name} {count}; use at least 1")
    ordinary = _ordinary_tokens(model, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(windows, window, generator=generator)
    start = ordinary[torch.randint(len(ordinary), (windows, window), generator=generator)]
    began, written = time.perf_counter(), 0
    numbers = list(torch.arange(windows).split(batch))
    texts = torch.empty(0, window, dtype=torch.long)
    with evaluation_mode(model):
        for rows in ranks.share(numbers):
            text = start[rows].to(model.device)
            for steps in _write(model, text, chance[rows].to(model.device)):
                if progress is not None:
                    done = ranks.size * (written + steps * len(rows))
                    rate = f"{done / (time.perf_counter() - began):.0f} tokens/s"
                    progress(min(done, windows * window), windows * window, rate)
            written += len(rows) * window
            texts = torch.cat([texts, text.cpu()])
    found = [part.split(batch) for part in ranks.parts(texts)]
    return torch.cat([found[number % ranks.size][number // ranks.size] for number in range(len(numbers))])


def self_generated_key(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, *, window: int, windows: int, seed: int
) -> str:
    """What decides the text of :func:`self_generated`, beside the model's weights and how a machine rounds."""
    ordinary = _ordinary_tokens(model, tokenizer)
    known = (
        BATCH,
        GREEDY,
        window,
        windows,
        seed,
        ordinary.tolist(),
        _bos(model),
        sorted(_named_tokens(model, "eos_token_id")),
    )
    return hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()


def _write(model: PreTrainedModel, text: Tensor, chance: Tensor) -> Iterator[int]:
    """Write ``text`` (rows, window) in place, yielding the tokens each row has.

    It comes filled with the random token that each place holds if a text starts there; ``chance`` (uniform in [0, 1))
    decides the sampled ones.
    """
    bos, eos = _bos(model), sorted(_named_tokens(model, "eos_token_id"))
    ends, openings = (torch.tensor(ids, device=text.device) for ids in (eos, eos if bos is None else [bos]))
    if bos is not None:
        text[:, 0] = bos
    visible = torch.ones_like(text)  # a text sees nothing of the one before
    age = torch.zeros(len(text), dtype=torch.long, device=text.device)  # tokens since the random one
    cache, seen = None, 0
    yield 1
    for place in range(1, text.shape[1]):
        logits, cache = _predict(model, text[:, seen:place], visible[:, :place], cache)
        seen = place if cache is not None else 0
        token = torch.where(age < GREEDY, logits.argmax(-1), _sample(logits, chance[:, place]))
        last = text[:, place - 1]
        if bos is not None:
            token[torch.isin(last, ends)] = bos
        start = torch.isin(last, openings)  # first: BOS may be EOS, as GPT-2's
        text[:, place] = torch.where(start, text[:, place], token)
        age = torch.where(start, 0, age + 1)
        visible[torch.isin(text[:, place], openings), :place] = 0
        yield place + 1


def _predict(model: PreTrainedModel, ids: Tensor, visible: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits (rows, vocabulary) of the next token, and the cache; without one the next call needs the whole text."""
    known = {} if cache is None else {"past_key_values": cache}
    output = model(ids, attention_mask=visible, use_cache=True, **known)
    return output.logits[:, -1].float(), getattr(output, "past_key_values", None)


def _sample(logits: Tensor, chance: Tensor) -> Tensor:
    """One token a row, from softmax at temperature 1, by inverting the distribution function."""
    total = logits.softmax(-1).cumsum(-1)
    if not total[:, -1].isfinite().all():
        raise ModelError("the model's output is NaN or infinite; try dtype float32")
    return torch.searchsorted(total, chance[:, None] * total[:, -1:], right=True)[:, 0]


def _ordinary_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """Ids that a text may start with."""
    size = model.config.get_text_config().vocab_size
    special = _named_tokens(model, "bos_token_id", "eos_token_id", "pad_token_id")
    if tokenizer is not None:
        size = min(size, len(tokenizer))  # rows that only pad the embedding come after the tokenizer's
        special |= {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ordinary = [token for token in range(size) if token not in special]
    if not ordinary:
        raise ModelError(f"all {size} tokens of the vocabulary are special; give calibration text instead")
    return torch.tensor(ordinary)


def _bos(model: PreTrainedModel) -> int | None:
    text_config = model.config.get_text_config()
    bos = getattr(text_config, "bos_token_id", None)
    return bos if isinstance(bos, int) and 0 <= bos < text_config.vocab_size else None  # some configs keep a default


def _named_tokens(model: PreTrainedModel, *names: str) -> set[int]:
    """Token ids under these names in the model's config and generation config; each may be one, several or None."""
    found: set[int] = set()
    for config in (model.config.get_text_config(), getattr(model, "generation_config", None)):
        for name in names:
            value = getattr(config, name, None)
            found.update(value if isinstance(value, (list, tuple)) else [value] if value is not None else [])
    return found
