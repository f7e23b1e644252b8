"""What BERTScore (arXiv 1904.09675) sees texts with.

The score is computed by the ``bert-score`` library, without its rescaling and without idf weights; the encoder is loaded
here, because the library's own loading reads pickles.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from potq.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, ModelError, out_of_reach

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ENCODED = 64  # texts encoded at a time


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


def load_encoder(
    source: str | os.PathLike[str], layer: int | None = None, *, device: str | torch.device | None = None
) -> Encoder:
    """An encoder for BERTScore, in float32.

    Args:
        source: a folder with config.json, safetensors and a tokenizer, or a hub name.
        layer: whose output is compared, from 1; by default the one that bert-score found to agree best with people, by the
            name of the encoder or its folder (17 of roberta-large's 24), and the last of an encoder it does not know.
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
            f"{name} cannot be used with bert-score, which needs padding and a token at either end of a text; use one like "
            "BERT or RoBERTa"
        )
    layer = _usual_layer(name, layers) if layer is None else layer
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


def _usual_layer(name: str, layers: int) -> int:
    from bert_score.utils import model2layers

    known = model2layers.get(name, model2layers.get(Path(name).name, layers))
    return known if known <= layers else layers


def _find(source: str | os.PathLike[str]) -> str:
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text and path.is_dir():
        return str(path)
    if path.exists() or path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or not text:
        raise CheckpointError(
            f"encoder {text!r} not found; give a folder (config.json, safetensors, tokenizer) or a hub name"
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
        reason = None if Path(name).is_dir() else out_of_reach(f"the encoder {name}", error)
        raise CheckpointError(reason or f"the encoder {name} cannot be loaded: {error}") from error
    if missing := [key for key in sorted(info["missing_keys"]) if "pooler" not in key]:
        raise CheckpointError(f"the encoder {name} lacks {', '.join(missing[:5])}; it is incomplete, copy it again")
    return model, tokenizer
