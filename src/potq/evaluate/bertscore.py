"""Whether a model still writes what it wrote: BERTScore (arXiv 1904.09675) of its greedy continuations.

The score itself is computed by the ``bert-score`` library, without its rescaling and without idf weights. Scores of one
encoder and layer are comparable with each other and with nothing else.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from potq.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, ModelError
from potq.model import evaluation_mode, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 100, 64, 64
BATCH = 16  # continuations written at a time
_ENCODED = 64  # texts encoded at a time

Progress = Callable[[int, int, str], None]
"""Called after each batch: continuations written, in all, speed."""


# ---- what is continued


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
            raise DataError(f"{name} is {value}; use at least 1")
    size = prompt_tokens + new_tokens
    stride = len(tokens) // count
    if stride < size:
        raise DataError(
            f"the text has {len(tokens)} tokens, room for {len(tokens) // size} prompts of {prompt_tokens} tokens with "
            f"continuations of {new_tokens}, not for {count}; give more text, or ask for fewer or shorter ones"
        )
    windows = tokens[: count * stride].view(count, stride)[:, :size]
    return Prompts(windows[:, :prompt_tokens], windows[:, prompt_tokens:])


# ---- how a model continues it


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
            raise DataError(f"{name} is {value}; use at least 1")
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


# ---- how alike two texts are


class _Layer(nn.Module):
    """An encoder whose output is one of its layers', which is how bert-score reads it."""

    def __init__(self, encoder: nn.Module, layer: int) -> None:
        super().__init__()
        self.encoder, self.layer = encoder, layer

    def forward(self, ids: Tensor, attention_mask: Tensor, output_hidden_states: bool) -> tuple[Tensor]:
        return (self.encoder(ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states[self.layer],)


@dataclass(frozen=True)
class Encoder:
    """What BERTScore sees texts with; :func:`load_encoder` makes it.

    Attributes:
        name: the folder or hub name it is from.
        layer: whose output is compared, from 1.
        library: the version of ``bert-score``.
        model: token ids and mask ``(batch, length)`` to ``(hidden states (batch, length, width),)``.
    """

    name: str
    layer: int
    library: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase

    def f1(self, candidates: Sequence[str], references: Sequence[str], *, batch: int = _ENCODED) -> list[float]:
        """BERTScore F1 of each candidate with its reference: 1 if they are the same, 0 or less if they share nothing.

        An empty text (none that the encoder's tokenizer has a token for) scores 0 with any other and 1 with another empty
        one: bert-score itself fails on them. Text beyond the encoder's limit is cut off.

        Raises:
            DataError: more candidates than references, or fewer.
        """
        from bert_score.utils import bert_cos_score_idf

        if len(candidates) != len(references):
            raise DataError(f"{len(candidates)} candidates against {len(references)} references; give as many of both")
        blank = {text: self._is_blank(text) for text in {*candidates, *references}}
        pairs = list(zip(candidates, references, strict=True))
        scores = [float(blank[candidate] and blank[reference]) for candidate, reference in pairs]
        rows = [row for row, (candidate, reference) in enumerate(pairs) if not (blank[candidate] or blank[reference])]
        if rows:
            weights = defaultdict(lambda: 1.0, {self.tokenizer.cls_token_id: 0.0, self.tokenizer.sep_token_id: 0.0})
            texts = [references[row] for row in rows], [candidates[row] for row in rows]
            device = next(self.model.parameters()).device
            found = bert_cos_score_idf(self.model, *texts, self.tokenizer, weights, batch_size=batch, device=device)
            for row, score in zip(rows, found[:, 2].tolist(), strict=True):
                scores[row] = score
        return scores

    def _is_blank(self, text: str) -> bool:
        return len(self.tokenizer(text.strip(), verbose=False)["input_ids"]) == 2


def bert_score(
    candidates: Sequence[str],
    references: Sequence[str],
    encoder: str | os.PathLike[str],
    layer: int | None = None,
    *,
    batch: int = _ENCODED,
) -> list[float]:
    """BERTScore F1 of each candidate with its reference; see :func:`load_encoder` and :meth:`Encoder.f1`.

    Raises:
        PotqError: what these two raise.
    """
    return load_encoder(encoder, layer).f1(candidates, references, batch=batch)


def load_encoder(
    source: str | os.PathLike[str], layer: int | None = None, *, device: str | torch.device | None = None
) -> Encoder:
    """An encoder for BERTScore, in float32.

    Args:
        source: a folder with config.json, safetensors and a tokenizer, or a hub name.
        layer: whose output is compared, from 1; by default the last. (The paper chooses it by agreement with people: 17 of
            RoBERTa-large's 24.)
        device: where it runs; the CPU by default.

    Raises:
        MissingDependencyError: the ``bert-score`` library is not installed; names the pip line.
        CheckpointError: a folder that is missing, incomplete or damaged.
        ModelError: its tokenizer does not put a text between two special tokens, or has none to pad with.
        ConfigError: it has no such layer.
    """
    _check_library()
    name = _find(source)
    model, tokenizer = _load(name)
    layers = getattr(model.config, "num_hidden_layers", 0)
    if not layers or tokenizer.pad_token_id is None or len(tokenizer("")["input_ids"]) != 2:
        raise ModelError(
            f"{name} is no encoder for bert-score, which expects padding and a token at either end of a text; use one like "
            "BERT or RoBERTa"
        )
    layer = layers if layer is None else layer
    if not 1 <= layer <= layers:
        raise ConfigError(f"{name} has no layer {layer}; choose one of 1 to {layers}")
    limit = getattr(model.config, "max_position_embeddings", 512)
    if tokenizer.model_max_length > limit:  # 1e30, if it knows none; bert-score cuts there, and fails on numbers so large
        tokenizer.model_max_length = limit - 2  # RoBERTa's positions begin at 2
    chosen = _Layer(model.get_encoder() if model.config.is_encoder_decoder else model, layer)
    return Encoder(name, layer, f"bert-score {version('bert-score')}", chosen.to(device).eval(), tokenizer)


def _check_library() -> None:
    try:
        import bert_score.utils  # noqa: F401
    except ImportError:
        raise MissingDependencyError("BERTScore needs the bert-score library: pip install 'potq[bertscore]'") from None


def _find(source: str | os.PathLike[str]) -> str:
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text and path.is_dir():
        return str(path)
    if path.exists() or path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or not text:
        raise CheckpointError(
            f"there is no encoder {text!r}; give a folder (config.json, safetensors, tokenizer) or a hub name"
        )
    return text


def _load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """bert-score's own loading takes any path that contains "t5" for a T5 model, and reads pickles."""
    from transformers import AutoModel, AutoTokenizer

    try:
        # roberta's tokens as bert-score wants them: it asks for this when it encodes, where transformers 5 ignores it
        tokenizer = AutoTokenizer.from_pretrained(name, add_prefix_space=True)
        with torch.random.fork_rng(devices=[]):  # a pooler that the file lacks is drawn at random, and never used
            model, info = AutoModel.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # transformers raises many kinds, down to bare Exception
        raise CheckpointError(f"the encoder {name} cannot be loaded: {error}") from error
    if missing := [key for key in sorted(info["missing_keys"]) if "pooler" not in key]:
        raise CheckpointError(f"the encoder {name} lacks {', '.join(missing[:5])}; it is incomplete, copy it again")
    return model, tokenizer


# ---- the two together


@dataclass(frozen=True)
class F1:
    """BERTScore F1 of pairs of texts."""

    mean: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class ContinuationScore:
    """How alike continuations are, and everything needed to compare that with another one."""

    model_true: F1
    """The model's with the text's own."""
    reference_true: F1 | None
    """The reference model's with the text's own, if there is one."""
    model_reference: F1 | None
    """The model's with the reference model's, if there is one."""
    encoder: str
    layer: int
    library: str
    prompts: int
    prompt_tokens: int
    new_tokens: int
    seconds: float

    @property
    def protocol(self) -> str:
        """The protocol in words; print it wherever the numbers are printed."""
        return (
            f"BERTScore F1 ({self.library}, layer {self.layer} of {self.encoder}, not rescaled, no idf): {self.prompts} "
            f"evenly spaced prompts of {self.prompt_tokens} tokens, greedy continuations of up to {self.new_tokens}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "protocol": self.protocol}


def continuation_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    encoder: Encoder,
    *,
    reference: PreTrainedModel | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> ContinuationScore:
    """BERTScore of ``model``'s greedy continuations with the text's own, and with those of a ``reference`` model.

    Args:
        tokenizer: the model's own, and the reference's.
        reference: the full-precision model, if there is one to compare with.
        batch: continuations written at a time.
        progress: called after each batch, first for the model, then for the reference.

    Raises:
        DataError: prompts and continuations longer than a model's limit.
        ModelError: the two models have different vocabularies.
    """
    if reference is not None and vocabulary(reference) != vocabulary(model):
        raise ModelError(
            f"the reference has a vocabulary of {vocabulary(reference)} tokens, the model of {vocabulary(model)}; "
            "compare with the model it was made from"
        )
    count, new_tokens = prompts.truths.shape
    began = time.perf_counter()
    write = partial(continuations, prompts=prompts.prompts, new_tokens=new_tokens, batch=batch, progress=progress)
    true, own = _texts(tokenizer, prompts.truths), _texts(tokenizer, write(model))
    full = _texts(tokenizer, write(reference)) if reference is not None else None
    return ContinuationScore(
        model_true=_f1(encoder, own, true),
        reference_true=_f1(encoder, full, true) if full is not None else None,
        model_reference=_f1(encoder, own, full) if full is not None else None,
        encoder=encoder.name,
        layer=encoder.layer,
        library=encoder.library,
        prompts=count,
        prompt_tokens=prompts.prompts.shape[1],
        new_tokens=new_tokens,
        seconds=time.perf_counter() - began,
    )


def _texts(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Tensor]) -> list[str]:
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def _f1(encoder: Encoder, candidates: list[str], references: list[str]) -> F1:
    scores = encoder.f1(candidates, references)
    return F1(math.fsum(scores) / len(scores), tuple(scores))
