"""Models of the tests: a random BERT with a tokenizer like BERT's, a random GPT-2, and one whose logits are given."""

from __future__ import annotations

import string
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)


class Fixed(nn.Module):
    """A model whose logits are given: enough of a causal LM for perplexity."""

    def __init__(self, logits: torch.Tensor, limit: int | None = None) -> None:
        super().__init__()
        self.logits, self.device = logits, torch.device("cpu")
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=limit))

    def forward(self, ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[ids])


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
PIECES = [*SPECIAL, *CHARACTERS, *(f"##{character}" for character in string.ascii_lowercase)]


def word_pieces(**options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer like BERT's whose pieces are characters."""
    inner = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **(names | options))


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_bert() -> BertModel:
    config = BertConfig(vocab_size=len(PIECES), max_position_embeddings=64, initializer_range=0.2, **SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertModel(config, add_pooling_layer=False)


def tiny_classifier() -> BertForSequenceClassification:
    config = BertConfig(vocab_size=len(PIECES), max_position_embeddings=64, num_labels=3, **SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(config)


def tiny_gpt2() -> GPT2LMHeadModel:
    """Positions are learned here, so padding must not move them; no token is its end."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=260, bos_token_id=None, eos_token_id=None, **sizes)).eval()
