"""Small files under the names that README and docs write, so that their blocks run in seconds.

========================  ========================================================================================
``smollm2``               a random Llama of one layer. A folder of that name goes before the embedded model; blocks
                          tagged "slow" do without the folder, and get the real one
``path/to/model``         the same
``path/to/encoder``       a random BERT
``path/to/classifier``    the same with a head that tells three classes apart
``wiki.test.raw``         a text
``Salesforce/wikitext``   a dataset with WikiText-2's config and splits, of a few lines
``examples``, ``recipes`` the repository's own, as in a clone
========================  ========================================================================================
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evaluate_helpers import tiny_bert, tiny_classifier, word_pieces
from potq.data.text import read_text

ROOT = Path(__file__).parents[2]
CHAT = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}assistant:"
TEXT = "The cat sat on the mat, and the other cat sat beside it. Then both went home, where a third one slept.\n" * 100
VOCABULARY = 3584  # documents write token ids of a real one
SPLITS = ("train", "validation", "test")


def write_stand_ins(folder: Path, tokenizer: Any) -> None:
    """Fill ``folder`` with all of the table above; the models get a tokenizer like ``tokenizer``, trained on more."""
    tokenizer = tokenizer.train_new_from_iterator([read_text("pydoc")], VOCABULARY, show_progress=False)
    tokenizer.chat_template = CHAT
    for name in ("smollm2", "path/to/model"):
        _tiny_llama().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    tiny_bert().save_pretrained(folder / "path/to/encoder")
    word_pieces(model_max_length=64).save_pretrained(folder / "path/to/encoder")
    tiny_classifier().save_pretrained(folder / "path/to/classifier")
    word_pieces(model_max_length=64).save_pretrained(folder / "path/to/classifier")
    (folder / "wiki.test.raw").write_text(TEXT)
    _write_dataset(folder / "Salesforce/wikitext")
    for name in ("examples", "recipes"):
        shutil.copytree(ROOT / name, folder / name)


def _tiny_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def _write_dataset(folder: Path) -> None:
    folder.mkdir(parents=True)
    files = "".join(f"  - {{split: {split}, path: {split}.txt}}\n" for split in SPLITS)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n{files}---\n")
    for split in SPLITS:
        (folder / f"{split}.txt").write_text(TEXT)
