"""A model from a GGUF file: transformers makes it, of a config that is completed first."""

from __future__ import annotations

import json
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from potq.checkpoint.folder import require_all
from potq.checkpoint.gguf.config import LLAMA3, understood
from potq.checkpoint.gguf.file import GgufFile, opened, parsed_once
from potq.errors import ModelError, listed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_gguf(path: Path, dtype: str | torch.dtype) -> PreTrainedModel:
    """The model, its weights dequantized: an ordinary full-precision one afterwards.

    Raises:
        CheckpointError: a part or a tensor is missing.
        ModelError: metadata or tensors that are not understood.
    """
    import transformers

    file, config = opened(path), gguf_config(path)
    with parsed_once(file):
        kind = getattr(transformers, "GgufConfig", None)  # a newer one can keep weights in blocks, and is told not to
        options = {} if kind is None else {"quantization_config": kind(dequantize=True)}
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            config=config,
            **options,
            dtype=torch.float32 if dtype == "auto" else dtype,
            output_loading_info=True,
        )
        require_all(str(path), info["missing_keys"])
        _require_used(file, model, info["unexpected_keys"])
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)  # it would forbid saving
    loaded: PreTrainedModel = model
    return loaded


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a GGUF file describes."""
    from transformers import AutoTokenizer

    # an older transformers takes the vocabulary from gguf's reader, which then has to read it
    reading = parsed_once(opened(path)) if find_spec("transformers.integrations.gguf") else nullcontext()
    with reading:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    rows = opened(path).shapes.get("token_embd.weight")
    if rows is not None and max(tokenizer.get_added_vocab().values(), default=0) >= rows[0]:
        _take_out(tokenizer, rows[0])
    return tokenizer


def _take_out(tokenizer: Any, count: int) -> None:
    """Special tokens from ``count`` on, for which the model has no row: transformers adds those of a vocabulary's kind."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < count]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    known = tokenizer.get_vocab()
    for name, token in tokenizer.special_tokens_map.items():
        if isinstance(token, str) and token not in known:
            setattr(tokenizer, name, None)


def gguf_config(path: Path) -> Any:
    """The model's config, with everything that the file says of the computation.

    Raises:
        ModelError: metadata that is not understood.
    """
    from transformers import AutoConfig

    file = opened(path)
    with parsed_once(file):
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    return config if _read_whole(file) else type(config).from_dict(understood(file, config.to_dict()))


def _read_whole(file: GgufFile) -> bool:
    """Whether transformers' newer reader, which leaves nothing out, knows the family."""
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:
        return False
    return file.architecture in GGUF_CONFIG_ARCHS


def _require_used(file: GgufFile, model: Any, unexpected: set[str]) -> None:
    """Refuse a file with tensors that the model has no place for: transformers leaves them out without a word."""
    unused = set(unexpected)
    if not _read_whole(file):
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=model.config.to_dict())
        used = {*get_gguf_hf_weights_map(model, processor), LLAMA3, "output.weight"}
        unused |= file.shapes.keys() - used
    if unused:
        raise ModelError(
            f"{file.path} holds {listed(sorted(unused), 5)}, which a model of the family {file.architecture} does not use "
            "here; take the model's safetensors folder instead"
        )
