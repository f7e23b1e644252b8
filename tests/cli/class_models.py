"""Tiny models of every kind of class, random, in folders with all that belongs to them."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

VOCAB = 264
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SIZES, "vocab_size": VOCAB, "max_position_embeddings": 64, "pad_token_id": 3}
SEQ2SEQ = {
    "vocab_size": VOCAB,
    "d_model": 32,
    **{f"{side}_{key}": size for side in ("encoder", "decoder") for key, size in (("layers", 2), ("ffn_dim", 48))},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "decoder_start_token_id": 2,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 3,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
TEXT = {**SIZES, "vocab_size": VOCAB, "max_position_embeddings": 64}
TOWER = {**SIZES, "image_size": 28, "patch_size": 14, "num_hidden_layers": 1}
GEMMA = {**TEXT, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def _whisper() -> Any:
    sizes = {key: value for key, value in SEQ2SEQ.items() if key != "pad_token_id"}
    limits = {"num_mel_bins": 8, "max_source_positions": 50, "max_target_positions": 64}
    return transformers.WhisperConfig(**sizes, **limits, pad_token_id=3, suppress_tokens=None, begin_suppress_tokens=None)


def _gemma3() -> Any:
    images = {"mm_tokens_per_image": 4, "image_token_index": 260, "boi_token_index": 261, "eoi_token_index": 262}
    return transformers.Gemma3Config(text_config=GEMMA, vision_config=TOWER, **images)


def _llava() -> Any:
    text, tower = transformers.LlamaConfig(**TEXT), transformers.CLIPVisionConfig(**TOWER)
    return transformers.LlavaConfig(text_config=text, vision_config=tower, image_token_index=260)


def _mistral3() -> Any:
    text = transformers.MistralConfig(**TEXT, num_key_value_heads=2, head_dim=8)
    tower = transformers.PixtralVisionConfig(**TOWER, head_dim=8)
    return transformers.Mistral3Config(text_config=text, vision_config=tower, image_token_index=260)


def _qwen2_vl() -> Any:
    text = {**TEXT, "num_key_value_heads": 2, "rope_parameters": MROPE}
    tower = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    return transformers.Qwen2VLConfig(text_config=text, vision_config=tower, image_token_id=260, video_token_id=261)


CONFIGS: dict[str, Any] = {
    "BertForMaskedLM": lambda: transformers.BertConfig(**BERT),
    "BertForSequenceClassification": lambda: transformers.BertConfig(**BERT, num_labels=3),
    "BertModel": lambda: transformers.BertConfig(**BERT),
    "LlamaForSequenceClassification": lambda: transformers.LlamaConfig(**TEXT, num_labels=3, pad_token_id=3),
    "T5ForConditionalGeneration": lambda: transformers.T5Config(**T5),
    "T5EncoderModel": lambda: transformers.T5Config(**T5),
    "BartForConditionalGeneration": lambda: transformers.BartConfig(**SEQ2SEQ, max_position_embeddings=64),
    "BartForSequenceClassification": lambda: transformers.BartConfig(**SEQ2SEQ, max_position_embeddings=64),
    "WhisperForConditionalGeneration": _whisper,
    "ViTForImageClassification": lambda: transformers.ViTConfig(**SIZES, image_size=16, patch_size=4, num_labels=3),
    "LlavaForConditionalGeneration": _llava,
    "Qwen2VLForConditionalGeneration": _qwen2_vl,
    "Gemma3ForConditionalGeneration": _gemma3,
    "Mistral3ForConditionalGeneration": _mistral3,
}
MULTIMODAL = [name for name in CONFIGS if name.startswith(("Llava", "Qwen2VL", "Gemma3", "Mistral3"))]


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, between ``<s>`` and ``</s>``."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    inner.train_from_iterator(["the cat sat on the mat"], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def save(name: str, folder: Path) -> Path:
    """A folder of a random model of class ``name``, the same every time."""
    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(CONFIGS[name]()).eval()
    model.save_pretrained(folder)
    if name.startswith("ViT"):
        kind = (
            getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
        )  # as it was called before
        kind(size={"height": 16, "width": 16}).save_pretrained(folder)
        return folder
    if name.startswith("Whisper"):
        transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def images(folder: Path, count: int = 4) -> Path:
    """PNG files in ``folder`` and one in it."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    (folder / "more").mkdir(parents=True)
    for index in range(count):
        pixels = torch.randint(256, (20, 24, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save((folder if index else folder / "more") / f"{index}.png")
    return folder


def recordings(folder: Path, count: int = 3, *, rate: int = 16000, width: int = 2, channels: int = 1) -> Path:
    """WAV files of a quarter of a second."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        wave_of(folder / f"{index}.wav", torch.sin(torch.arange(4000) * (0.05 + 0.02 * index)), rate, width, channels)
    return folder


def wave_of(file: Path, samples: Tensor, rate: int = 16000, width: int = 2, channels: int = 1) -> None:
    """Samples ``(count,)`` between -1 and 1 as a WAV file, the same in every channel."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    scaled = samples.double() * (2 ** (8 * width - 1) - 1) + (128 if width == 1 else 0)
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(channels)
        opened.setsampwidth(width)
        opened.setframerate(rate)
        opened.writeframes(scaled.round().to(kinds[width]).repeat_interleave(channels).numpy().tobytes())


def inputs(name: str) -> dict[str, Tensor]:
    """What a model of class ``name`` runs on."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([[1, *torch.randint(4, 260, (10,), generator=generator).tolist(), 2]])
    if name.startswith("ViT"):
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    decoder = {"decoder_input_ids": ids[:, :6]}
    if name.startswith("Whisper"):
        return {"input_features": torch.randn(1, 8, 100, generator=generator), **decoder}
    return {"input_ids": ids, **(decoder if name in ("T5ForConditionalGeneration", "BartForConditionalGeneration") else {})}


def output(model: Any, name: str) -> Tensor:
    """What a model of class ``name`` puts out on :func:`inputs`."""
    with torch.no_grad():
        found = model(**inputs(name))
    result: Tensor = found.logits if "logits" in found else found.last_hidden_state
    return result
