"""The engine's attention against the Hugging Face modules in double precision, on every instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from potq import Engine, native
from tests.engine.test_families import error, rounded_cache

ISAS = [] if native.missing() else list(native.usable_isas())
LIMIT = 150  # tokens the models know: more than go through the layers at once

pytestmark = pytest.mark.skipif(not ISAS, reason=native.missing() or "")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    native.isa.cache_clear()
    monkeypatch.setenv("POTQ_CPU_ISA", request.param)
    yield request.param
    native.isa.cache_clear()


def mistral(head_size: int, group: int, window: int | None = None) -> Any:
    """A random model of one layer whose queries look sharply at some positions."""
    torch.manual_seed(head_size + group)
    config = transformers.MistralConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2 * group,
        num_key_value_heads=2,
        head_dim=head_size,
        max_position_embeddings=LIMIT,
        sliding_window=window,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(6 if parameter.ndim > 1 else 1)
    return model


def reference(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.double()(ids[None], use_cache=True).logits[0]


@pytest.mark.parametrize("window", [None, 1, 3, 37])
@pytest.mark.parametrize("group", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("head_size", [2, 10, 22, 64])
def test_double_precision(
    isa: str, head_size: int, group: int, window: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded_cache(monkeypatch)
    model = mistral(head_size, group, window)
    model.save_pretrained(tmp_path / "m")
    ids = torch.randint(0, 97, (LIMIT,), generator=torch.Generator().manual_seed(3))
    engine = Engine(tmp_path / "m", threads=1)
    assert engine.isa == isa
    whole = engine.logits(ids)
    assert error(whole.double(), reference(model, ids)) < 1e-3
    alone = [engine._append([int(token)], behind=position) for position, token in enumerate(ids)]
    assert torch.equal(torch.cat(alone), whole)


def test_what_a_row_does_not_see_never_reaches_it(isa: str, tmp_path: Path) -> None:
    """Values too large for the cache are infinite; those rows alone are lost that see them."""
    model = mistral(16, 3)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[96, 0] = 100
        attention.v_proj.weight[:, 0] = 1e5
        attention.q_proj.weight[:, 0] = 0
        attention.k_proj.weight[:, 0] = 0
    model.save_pretrained(tmp_path / "m")
    ids = [*range(40), 96, 7]
    logits = Engine(tmp_path / "m", threads=1).logits(ids)
    assert torch.isfinite(logits[:40]).all()
    assert not torch.isfinite(logits[40:]).any()
    assert torch.equal(logits[:40], Engine(tmp_path / "m", threads=1).logits(ids[:40]))
