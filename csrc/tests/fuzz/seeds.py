"""Makes the sound seeds of the fuzz targets' corpus: folders as ``potq.save`` writes them, with their data left out.

    python csrc/tests/fuzz/seeds.py

The damaged ones beside them were written by hand, or found by the fuzzers.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors, trainers

import potq

CORPUS = Path(__file__).parent / "corpus"
BORDER = b"\n---\n"
DATA = b";<:="  # repeated, as a float or a scale it is a moderate number
LLAMA: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 12,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 24, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12}
FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "llama-pot4": ("Llama", {**LLAMA, "tie_word_embeddings": True}, {"preset": "pot4"}),
    "llama-targets": (
        "Llama",
        {**LLAMA, "attention_bias": True, "rope_parameters": LLAMA3},
        {
            "preset": "pot3",
            "group_size": "row",
            "targets": {r"^model\.layers\.\d+\.mlp\..*": "pot6"},
            "ignore": ["[kv]_proj"],
        },
    ),
    "qwen2-e8m0": ("Qwen2", {**LLAMA, "use_sliding_window": True, "sliding_window": 3}, {"preset": "mxfp4"}),
    "qwen3-pot2": (
        "Qwen3",
        {**LLAMA, "head_dim": 8},
        {"preset": "pot2", "embedding": None, "scale_dtype": "e8m0", "row_scale": True},
    ),
    "llama-pot3s": ("Llama", LLAMA, {"preset": "pot3s"}),
    "mistral-int8": ("Mistral", {**LLAMA, "sliding_window": 4}, {"preset": "int8", "group_size": "tensor"}),
    "qwen3-moe-pot4": (
        "Qwen3Moe",
        {**LLAMA, "head_dim": 8, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
        {"preset": "pot4", "targets": {r"experts\.down_proj": "pot3"}},
    ),
    "qwen3-moe-float32": (
        "Qwen3Moe",
        {
            **LLAMA,
            "num_hidden_layers": 2,
            "mlp_only_layers": [0],
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 20,
            "norm_topk_prob": True,
        },
        None,
    ),
    "gpt2-int3": ("GPT2", GPT2, {"preset": "int3"}),
    "gpt2-float32": ("GPT2", {**GPT2, "tie_word_embeddings": False}, None),
}


def folder(family: str, settings: dict[str, Any], quantization: dict[str, Any] | None, path: Path) -> bytes:
    config = getattr(transformers, f"{family}Config")(**settings, bos_token_id=0, eos_token_id=1, pad_token_id=None)
    model = transformers.AutoModelForCausalLM.from_config(config)
    if quantization is None:
        model.save_pretrained(path)
    else:
        potq.quantize(model, potq.PoTConfig(quantization.pop("preset"), **quantization))
        potq.save(model, path)
    raw = (path / "model.safetensors").read_bytes()
    header = raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]].strip()
    names = "config.json", "generation_config.json"
    files = [json.dumps(json.loads((path / name).read_bytes())).encode() for name in names]
    return BORDER.join([b"0", *files, header, DATA])


def tokenizer(processor: processors.PostProcessor | None = None, **changes: Any) -> bytes:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=40, special_tokens=["<s>", "</s>"], show_progress=False)
    made.train_from_iterator(["the cat's 12 thin hats, the rat's 21"] * 9, trainer)
    if processor:
        made.post_processor = processor
    return BORDER.join([json.dumps({**json.loads(made.to_str()), **changes}).encode(), "the cat<s> 12é's".encode()])


def split(pattern: str) -> dict[str, Any]:
    parts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"},
        {"type": "ByteLevel", "use_regex": False},
    ]
    return {"type": "Sequence", "pretokenizers": [{**part, "add_prefix_space": False} for part in parts]}


QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOKENIZERS = {
    "gpt2": tokenizer(),
    "qwen2": tokenizer(pre_tokenizer=split(QWEN2), normalizer={"type": "NFC"}),
    "template": tokenizer(processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])),
}


def main() -> None:
    torch.manual_seed(1)
    for name, arguments in FOLDERS.items():
        with tempfile.TemporaryDirectory() as path:
            (CORPUS / "folder" / name).write_bytes(folder(*arguments, Path(path) / "m"))
    for name, content in TOKENIZERS.items():
        (CORPUS / "tokenizer" / name).write_bytes(content)


if __name__ == "__main__":
    main()
