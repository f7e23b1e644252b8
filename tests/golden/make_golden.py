"""Makes the golden checkpoints that pin the on-disk format: ``python tests/golden/make_golden.py``.

Folders that exist are never written again: tests/checkpoint/test_folder.py must go on reading what older versions of potq
wrote. A new line in ``CONFIGS`` adds a folder.

``source/`` is a one-layer Llama in bfloat16 with random weights; every other folder is that model quantized one way.
``source_experts/`` and ``source_transposed_experts/`` have experts, and are the sources of the folders of ``EXPERTS``.
``module/`` is a plain module.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import torch
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import potq
from potq import PoTConfig, QuantScheme

HERE = Path(__file__).parent
CONFIGS = {
    "pot4_g64": PoTConfig("pot4"),
    "pot3_g32": PoTConfig("pot3", group_size=32, embedding="pot3"),
    "pot3s_g32": PoTConfig("pot3s", group_size=32, embedding="apot3s"),
    "apot4_g64": PoTConfig("apot4", embedding=None, scale_method="absmax"),
    "pot2_e8m0": PoTConfig("pot2", group_size=16, scale_dtype="e8m0", embedding=QuantScheme("mxpot")),
    "pot4_row_scale": PoTConfig(
        "pot4",
        group_size=32,
        scale_dtype="e8m0",
        row_scale=True,
        embedding=QuantScheme("pot3", group_size="row", scale_dtype="e8m0", row_scale=True),
    ),
    "int8_row": PoTConfig("int8", group_size="row", targets={"down_proj": QuantScheme("pot5", group_size="tensor")}),
    # one for each feature that config.json names (potq.numerics.features), and one that uses none
    "features_none": PoTConfig("pot4"),
    "features_bit_planes": PoTConfig("pot3", targets={"q_proj": "pot5", "k_proj": "pot6", "v_proj": "pot7"}),
    "features_e8m0_scales": PoTConfig("mxfp4"),
    "features_row_scales": PoTConfig("pot4", group_size=32, scale_dtype="e8m0", row_scale=True),
    "features_signed_scales": PoTConfig("int4", signed_scale=True),
    "features_table_grids": PoTConfig("iq4nl"),
    "features_tensor_scales": PoTConfig("int8", group_size="tensor"),
    "features_trellis": PoTConfig("pot2t", group_size=32, embedding="apot3t"),
}
EXPERTS = {"features_expert_stacks": "source_experts", "transposed_experts": "source_transposed_experts"}


def make_source() -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=70,  # 70 = 64 + 6: a short last group, and rows of 3 and 5 bits that end within a byte
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(HERE / "source")


def make_expert_sources() -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"head_dim": 8, "num_experts_per_tok": 2, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(2)
    as_stored = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, num_experts=3, moe_intermediate_size=20, initializer_range=0.1))
    transposed = GptOssForCausalLM(GptOssConfig(**sizes, num_local_experts=3, intermediate_size=20, initializer_range=0.1))
    for model, name in ((as_stored, "source_experts"), (transposed, "source_transposed_experts")):
        model.to(torch.bfloat16).save_pretrained(HERE / name)


def golden_module() -> nn.Module:
    """Every kind of layer, a tie, a shared layer; of simple fractions, exact everywhere."""
    shared, embed, head = nn.Linear(70, 8), nn.Embedding(16, 24), nn.Linear(24, 16, bias=False)
    head.weight = embed.weight
    convolutions = {"conv": nn.Conv1d(24, 6, 3), "image": nn.Conv2d(4, 4, 3, groups=2)}
    norm = nn.BatchNorm1d(8)
    module = nn.ModuleDict({"embed": embed, **convolutions, "layer": shared, "head": head, "again": shared, "norm": norm})
    for parameter in module.parameters():
        values = (torch.arange(parameter.numel()) * 37 % 101 - 50) / 64
        parameter.data = values.view(parameter.shape).to(torch.bfloat16)
    return module


def make_module() -> None:
    module = golden_module()
    potq.quantize(module, PoTConfig("pot3s", group_size=32, targets={"image": "mxpot:row_scale=true"}))
    potq.save_module(module, HERE / "module")


if __name__ == "__main__":
    if not (HERE / "source").exists():
        make_source()
    for name, config in CONFIGS.items():
        if not (HERE / name).exists():
            potq.save(potq.load(HERE / "source", config), HERE / name)
    if not (HERE / "source_experts").exists():
        make_expert_sources()
    for name, source in EXPERTS.items():
        if not (HERE / name).exists():
            config = PoTConfig("pot4", group_size=16, targets={"down_proj": "pot3:group_size=16"})
            potq.save(potq.load(HERE / source, config), HERE / name)
    if not (HERE / "module").exists():
        make_module()
