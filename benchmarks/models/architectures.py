"""The list of architectures, by kind: what transformers calls them, and what is set beside small sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from benchmarks.models.plain import PLAIN
from benchmarks.models.tiny import INPUTS, Inputs, Part, random_model

CAUSAL, EXPERTS, RECURRENT = "causal language models", "mixtures of experts", "state spaces and other recurrences"
ENCODERS, BOTH, IMAGES = "encoders", "encoder-decoders", "images and sound"
MULTIMODAL, MODULES = "multimodal models", "plain modules"
TEXT = (CAUSAL, EXPERTS, RECURRENT, MULTIMODAL)
"""Kinds that go on with a text: calibrated with token ids, and asked to generate."""


@dataclass(frozen=True)
class Architecture:
    """A model to try.

    Attributes:
        name: transformers' ``model_type``, or what a plain module is; with its class where one name has two.
        kind: one of the kinds above.
        make: a model with random weights; every call makes the same.
        inputs: a batch by its seed.
    """

    name: str
    kind: str
    make: Callable[[], Any] = field(compare=False)
    inputs: Callable[[int], Inputs] = field(compare=False)

    @property
    def plain(self) -> bool:
        return self.kind == MODULES

    @property
    def generates(self) -> bool:
        return self.kind in TEXT


def _made(kind: str, reads: str, entries: Mapping[str, tuple[str, dict[str, Any]]]) -> list[Architecture]:
    def make(name: str, settings: dict[str, Any]) -> Callable[[], nn.Module]:
        return lambda: random_model(name, settings)

    return [Architecture(name, kind, make(*entry), INPUTS[reads]) for name, entry in entries.items()]


_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_DELTA = {
    **{"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **_MIXED,
}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}
_INDEX = {"index_topk": 8, "index_head_dim": 32, "index_n_heads": 2}
_ROTARY = {"num_key_value_heads": 4}

_CAUSAL: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "mistral": ("MistralForCausalLM", {}),
    "ministral": ("MinistralForCausalLM", _WINDOWS),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt_neo": ("GPTNeoForCausalLM", {"attention_types": [[["global", "local"], 1]], "window_size": 8}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
    "gptj": ("GPTJForCausalLM", {"rotary_dim": 8}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", {}),
    "codegen": ("CodeGenForCausalLM", {"rotary_dim": 8}),
    "opt": ("OPTForCausalLM", {}),
    "bloom": ("BloomForCausalLM", {}),
    "falcon": ("FalconForCausalLM", {}),
    "mpt": ("MptForCausalLM", {}),
    "phi": ("PhiForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", {}),
    "gemma": ("GemmaForCausalLM", {}),
    "gemma2": ("Gemma2ForCausalLM", _WINDOWS),
    "gemma3_text": ("Gemma3ForCausalLM", _WINDOWS),
    "vaultgemma": ("VaultGemmaForCausalLM", _WINDOWS),
    "cohere": ("CohereForCausalLM", {}),
    "cohere2": ("Cohere2ForCausalLM", _WINDOWS),
    "stablelm": ("StableLmForCausalLM", {}),
    "starcoder2": ("Starcoder2ForCausalLM", {}),
    "persimmon": ("PersimmonForCausalLM", {}),
    "nemotron": ("NemotronForCausalLM", {}),
    "glm": ("GlmForCausalLM", {}),
    "glm4": ("Glm4ForCausalLM", {}),
    "olmo": ("OlmoForCausalLM", {}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "olmo3": ("Olmo3ForCausalLM", _WINDOWS),
    "smollm3": ("SmolLM3ForCausalLM", {}),
    "granite": ("GraniteForCausalLM", {}),
    "helium": ("HeliumForCausalLM", _ROTARY),
    "biogpt": ("BioGptForCausalLM", {}),
    "xglm": ("XGLMForCausalLM", {"attention_heads": 4}),
    "apertus": ("ApertusForCausalLM", {}),
    "arcee": ("ArceeForCausalLM", {}),
    "bitnet": ("BitNetForCausalLM", {}),
    "diffllama": ("DiffLlamaForCausalLM", {}),
    "doge": ("DogeForCausalLM", {}),
    "ernie4_5": ("Ernie4_5ForCausalLM", {}),
    "exaone4": ("Exaone4ForCausalLM", _WINDOWS),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", {}),
    "minicpm3": ("MiniCPM3ForCausalLM", {"num_key_value_heads": 4}),
    "nanochat": ("NanoChatForCausalLM", {}),
    "seed_oss": ("SeedOssForCausalLM", {}),
    "youtu": ("YoutuForCausalLM", _ROTARY),
    "modernbert-decoder": ("ModernBertDecoderForCausalLM", _WINDOWS),
}

_EXPERTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralForCausalLM", {}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {}),
    "qwen3_next": ("Qwen3NextForCausalLM", _DELTA),
    "qwen3_5_moe_text": ("Qwen3_5MoeForCausalLM", _DELTA),
    "gpt_oss": ("GptOssForCausalLM", _WINDOWS),
    "deepseek_v2": ("DeepseekV2ForCausalLM", _ROTARY),
    "deepseek_v3": ("DeepseekV3ForCausalLM", _ROTARY),
    "deepseek_v32": ("DeepseekV32ForCausalLM", {**_INDEX, **_ROTARY, "mlp_layer_types": ["dense", "sparse"]}),
    "glm4_moe": ("Glm4MoeForCausalLM", {}),
    "glm4_moe_lite": ("Glm4MoeLiteForCausalLM", _ROTARY),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", {**_INDEX, **_ROTARY, "mlp_layer_types": ["dense", "sparse"]}),
    "granitemoe": ("GraniteMoeForCausalLM", {}),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", {}),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        {**_MAMBA, **_MIXED},
    ),
    "phimoe": ("PhimoeForCausalLM", {}),
    "olmoe": ("OlmoeForCausalLM", {}),
    "flex_olmo": ("FlexOlmoForCausalLM", {}),
    "minimax": ("MiniMaxForCausalLM", {**_MIXED, "block_size": 8}),
    "minimax_m2": ("MiniMaxM2ForCausalLM", {}),
    "jamba": ("JambaForCausalLM", {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}),
    "llama4_text": ("Llama4ForCausalLM", {"num_experts_per_tok": 1}),
    "dbrx": (
        "DbrxForCausalLM",
        {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "jetmoe": ("JetMoeForCausalLM", {}),
    "ernie4_5_moe": ("Ernie4_5_MoeForCausalLM", {}),
    "hunyuan_v1_moe": ("HunYuanMoEV1ForCausalLM", {}),
    "afmoe": ("AfmoeForCausalLM", _WINDOWS),
    "aria_text": ("AriaTextForCausalLM", {}),
    "bailing_hybrid": ("BailingHybridForCausalLM", {**_ROTARY, **_MIXED}),
    "cohere2_moe": ("Cohere2MoeForCausalLM", _WINDOWS),
    "dots1": ("Dots1ForCausalLM", {"num_key_value_heads": 4}),
    "exaone_moe": ("ExaoneMoeForCausalLM", {**_WINDOWS, "num_key_value_heads": 2}),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        {**_WINDOWS, "enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 16},
    ),
    "hy_v3": ("HYV3ForCausalLM", {}),
    "kimi_linear": ("KimiLinearForCausalLM", {**_ROTARY, **_MIXED, "linear_head_dim": 16, "linear_num_heads": 4}),
    "laguna": ("LagunaForCausalLM", _WINDOWS),
    "lfm2_moe": ("Lfm2MoeForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    "longcat_flash": ("LongcatFlashForCausalLM", {**_ROTARY, "zero_expert_num": 2, "ffn_hidden_size": 128}),
    "mellum": ("MellumForCausalLM", _WINDOWS),
    "mimo_v2_flash": ("MiMoV2FlashForCausalLM", {}),
    "mistral4": ("Mistral4ForCausalLM", _ROTARY),
    "nemotron_h": (
        "NemotronHForCausalLM",
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention"],
            **{"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1, "chunk_size": 16},
        },
    ),
    "solar_open": ("SolarOpenForCausalLM", {}),
    "zaya": ("ZayaForCausalLM", {"num_experts_per_tok": 1, "router_hidden_size": 32}),
}

_RECURRENT: Mapping[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaForCausalLM", {}),
    "mamba2": ("Mamba2ForCausalLM", {"num_heads": 8, "n_groups": 1, "chunk_size": 16}),
    "falcon_mamba": ("FalconMambaForCausalLM", {}),
    "falcon_h1": ("FalconH1ForCausalLM", {**_MAMBA, "mamba_d_ssm": 128}),
    "bamba": ("BambaForCausalLM", {**_MAMBA, "attn_layer_indices": [1]}),
    "zamba": (
        "ZambaForCausalLM",
        {
            **{"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "use_mamba_kernels": False},
            **{"num_key_value_heads": 4, "mamba_dt_rank": 4},
        },
    ),
    "zamba2": (
        "Zamba2ForCausalLM",
        {
            **{"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "mamba_d_state": 16},
            **{"use_mamba_kernels": False, "num_key_value_heads": 4, "chunk_size": 16},
        },
    ),
    "rwkv": ("RwkvForCausalLM", {}),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        {"num_hidden_layers": 3, "attention_window_size": 16, "lru_width": 64},
    ),
    "xlstm": ("xLSTMForCausalLM", {"chunk_size": 8, "autocast_kernel_dtype": "float32", "qk_dim_factor": 1.0}),
    "lfm2": ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    "olmo_hybrid": ("OlmoHybridForCausalLM", _DELTA),
}

_ENCODERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", {}),
    "bert, bare": ("BertModel", {}),
    "bert, classifier": ("BertForSequenceClassification", {}),
    "roberta": ("RobertaForMaskedLM", {}),
    "xlm-roberta": ("XLMRobertaForSequenceClassification", {}),
    "camembert": ("CamembertForMaskedLM", {}),
    "distilbert": ("DistilBertForMaskedLM", {}),
    "albert": ("AlbertForMaskedLM", {}),
    "electra": ("ElectraForMaskedLM", {}),
    "deberta": ("DebertaForMaskedLM", {}),
    "deberta-v2": ("DebertaV2ForSequenceClassification", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "mpnet": ("MPNetModel", {}),
    "modernbert": ("ModernBertForMaskedLM", {"layer_types": ["sliding_attention", "full_attention"]}),
    "eurobert": ("EuroBertForMaskedLM", {}),
    "nomic_bert": ("NomicBertModel", {}),
    "xlnet": ("XLNetModel", {}),
}

_BOTH: Mapping[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", {}),
    "mt5": ("MT5ForConditionalGeneration", {}),
    "umt5": ("UMT5ForConditionalGeneration", {}),
    "bart": ("BartForConditionalGeneration", {}),
    "mbart": ("MBartForConditionalGeneration", {}),
    "pegasus": ("PegasusForConditionalGeneration", {}),
    "marian": ("MarianMTModel", {}),
    "m2m_100": ("M2M100ForConditionalGeneration", {}),
    "blenderbot": ("BlenderbotForConditionalGeneration", {}),
    "t5gemma": (
        "T5GemmaForConditionalGeneration",
        {"encoder": Part("T5GemmaModuleConfig", **_WINDOWS), "decoder": Part("T5GemmaModuleConfig", **_WINDOWS)},
    ),
    "switch_transformers": (
        "SwitchTransformersForConditionalGeneration",
        {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_decoder_layers": 2},
    ),
    "nllb-moe": ("NllbMoeForConditionalGeneration", {"encoder_sparse_step": 2, "decoder_sparse_step": 2}),
}

_SPECTRA: Mapping[str, tuple[str, dict[str, Any]]] = {"whisper": ("WhisperForConditionalGeneration", {})}

_IMAGES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", {}),
    "deit": ("DeiTForImageClassification", {}),
    "beit": ("BeitForImageClassification", {}),
    "dinov2": ("Dinov2Model", {}),
    "dinov3_vit": ("DINOv3ViTModel", {}),
    "swin": ("SwinForImageClassification", {"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2}),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [32, 64], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0},
    ),
    "siglip_vision_model": ("SiglipVisionModel", {}),
}

_PAIRS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPModel", {"text_config": Part("CLIPTextConfig"), "vision_config": Part("CLIPVisionConfig")}),
    "siglip": ("SiglipModel", {"text_config": Part("SiglipTextConfig"), "vision_config": Part("SiglipVisionConfig")}),
}

_LISTENER = {"conv_dim": [32, 32], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_conv_pos_embeddings": 16}
_SOUND: Mapping[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2": ("Wav2Vec2ForCTC", _LISTENER),
    "hubert": ("HubertForCTC", _LISTENER),
}

_TOKENS = {"image_token_id": 260, "video_token_id": 261, "vision_start_token_id": 262, "vision_end_token_id": 263}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
_MULTIMODAL: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llava": (
        "LlavaForConditionalGeneration",
        {"text_config": Part("LlamaConfig"), "vision_config": Part("CLIPVisionConfig"), "image_token_index": 260},
    ),
    "llava_next": (
        "LlavaNextForConditionalGeneration",
        {"text_config": Part("MistralConfig"), "vision_config": Part("CLIPVisionConfig"), "image_token_index": 260},
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": Part("Qwen2VLTextConfig", **_SECTIONS),
            "vision_config": Part("Qwen2VLVisionConfig", embed_dim=64),
            **_TOKENS,
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": Part("Qwen2_5_VLTextConfig", **_SECTIONS),
            "vision_config": Part("Qwen2_5_VLVisionConfig", out_hidden_size=64, fullatt_block_indexes=[1]),
            **_TOKENS,
        },
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": Part("Qwen3VLTextConfig", **_SECTIONS),
            "vision_config": Part("Qwen3VLVisionConfig", out_hidden_size=64, deepstack_visual_indexes=[0]),
            **_TOKENS,
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": Part("Gemma3TextConfig", **_WINDOWS),
            "vision_config": Part("SiglipVisionConfig"),
            **{"mm_tokens_per_image": 4, "image_token_index": 260, "boi_token_index": 261, "eoi_token_index": 262},
        },
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {"text_config": Part("MistralConfig"), "vision_config": Part("PixtralVisionConfig"), "image_token_index": 260},
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        {"text_config": Part("GemmaConfig"), "vision_config": Part("SiglipVisionConfig"), "image_token_index": 260},
    ),
    "idefics3": (
        "Idefics3ForConditionalGeneration",
        {"text_config": Part("LlamaConfig"), "vision_config": Part("Idefics3VisionConfig"), "image_token_id": 260},
    ),
    "internvl": (
        "InternVLForConditionalGeneration",
        {"text_config": Part("Qwen2Config"), "vision_config": Part("InternVLVisionConfig"), "image_token_id": 260},
    ),
    "aya_vision": (
        "AyaVisionForConditionalGeneration",
        {
            "text_config": Part("Cohere2Config", **_WINDOWS),
            "vision_config": Part("SiglipVisionConfig"),
            "image_token_index": 260,
        },
    ),
}

ARCHITECTURES: tuple[Architecture, ...] = (
    *_made(CAUSAL, "tokens", _CAUSAL),
    *_made(EXPERTS, "tokens", _EXPERTS),
    *_made(RECURRENT, "tokens", _RECURRENT),
    *_made(ENCODERS, "tokens", _ENCODERS),
    *_made(BOTH, "two texts", _BOTH),
    *_made(BOTH, "spectra", _SPECTRA),
    *_made(IMAGES, "images", _IMAGES),
    *_made(IMAGES, "images and tokens", _PAIRS),
    *_made(IMAGES, "sound", _SOUND),
    *_made(MULTIMODAL, "tokens", _MULTIMODAL),
    *(Architecture(name, MODULES, make, inputs) for name, (make, inputs) in PLAIN.items()),
)
BY_NAME: Mapping[str, Architecture] = {each.name: each for each in ARCHITECTURES}
