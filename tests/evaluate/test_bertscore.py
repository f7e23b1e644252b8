"""BERTScore of continuations: the library's numbers, greedy text whatever the batch, and input it refuses."""

from __future__ import annotations

import json
import shutil
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

import potq
from potq.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, ModelError, PotqError
from potq.evaluate.bertscore import (
    Encoder,
    Prompts,
    bert_score,
    continuation_score,
    continuations,
    load_encoder,
    prompts_of,
)

pytest.importorskip("bert_score")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
PIECES = [*SPECIAL, *CHARACTERS, *(f"##{character}" for character in string.ascii_lowercase)]
TEXTS = ["the cat sat on the mat", "A dog barked, loudly.", "zebra", "nothing is like the cat", "it is on the mat"]


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


def tiny_bert() -> BertModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(PIECES), max_position_embeddings=64, initializer_range=0.2, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertModel(config, add_pooling_layer=False)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models so small only wait for threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    tiny_bert().save_pretrained(folder)
    word_pieces(model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    return load_encoder(encoder_folder)


# ---- how alike two texts are


def test_a_text_is_wholly_like_itself(encoder: Encoder) -> None:
    assert encoder.f1(TEXTS, TEXTS) == pytest.approx([1.0] * len(TEXTS), abs=1e-5)


def test_f1_is_symmetric_and_less_than_one(encoder: Encoder) -> None:
    others = TEXTS[1:] + TEXTS[:1]
    there, back = encoder.f1(TEXTS, others), encoder.f1(others, TEXTS)
    assert there == pytest.approx(back, abs=1e-5)
    assert max(there) < 0.99


@pytest.mark.parametrize("layer", [1, 2])
def test_the_numbers_are_the_librarys_own(encoder_folder: Path, layer: int) -> None:
    from bert_score import BERTScorer

    others = TEXTS[2:] + TEXTS[:2]
    library = BERTScorer(model_type=str(encoder_folder), num_layers=layer, device="cpu")
    found = bert_score(TEXTS, others, encoder_folder, layer)
    assert found == pytest.approx(library.score(TEXTS, others)[2].tolist(), abs=1e-6)


def test_the_last_layer_is_the_default(encoder_folder: Path, encoder: Encoder) -> None:
    others = TEXTS[2:] + TEXTS[:2]
    assert (encoder.name, encoder.layer) == (str(encoder_folder), 2)
    assert encoder.f1(TEXTS, others) == pytest.approx(bert_score(TEXTS, others, encoder_folder, 2), abs=1e-6)
    assert encoder.f1(TEXTS, others) != pytest.approx(bert_score(TEXTS, others, encoder_folder, 1), abs=1e-3)


def test_how_many_texts_are_encoded_at_a_time(encoder: Encoder) -> None:
    others = TEXTS[2:] + TEXTS[:2]
    assert encoder.f1(TEXTS, others, batch=1) == pytest.approx(encoder.f1(TEXTS, others), abs=1e-5)


def test_empty_texts(encoder: Encoder) -> None:
    blank = ["", " \n", "\ufffd"]  # what no token stands for is empty too
    assert encoder.f1(blank, ["the cat"] * 3) == [0.0] * 3
    assert encoder.f1(["the cat"] * 3, blank) == [0.0] * 3
    assert encoder.f1(blank, blank[::-1]) == [1.0] * 3
    assert encoder.f1([], []) == []
    mixed = encoder.f1(["", "the cat", "the cat", ""], ["the cat", "the cat", "", ""])
    assert mixed == pytest.approx([0.0, 1.0, 0.0, 1.0], abs=1e-5)


def test_as_many_candidates_as_references(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="2 candidates against 1 references"):
        encoder.f1(["a", "b"], ["a"])


# ---- encoders


def test_a_tokenizer_without_limit_in_a_folder_called_t5(tmp_path: Path, encoder: Encoder) -> None:
    tiny_bert().save_pretrained(tmp_path / "t5")  # for bert-score that name means a T5 model
    word_pieces().save_pretrained(tmp_path / "t5")
    long = "the cat " * 50
    found = load_encoder(tmp_path / "t5")
    assert found.f1([long, *TEXTS], [long, *TEXTS[::-1]]) == pytest.approx(
        encoder.f1([long, *TEXTS], [long, *TEXTS[::-1]]), abs=1e-5
    )


def test_the_encoder_of_an_encoder_decoder(tmp_path: Path) -> None:
    sizes = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):
        BartModel(BartConfig(vocab_size=len(PIECES), **sizes, **widths)).save_pretrained(tmp_path)
    word_pieces().save_pretrained(tmp_path)
    found = load_encoder(tmp_path)
    assert found.layer == 2
    assert found.f1(["the cat", "a dog"], ["the cat", "zebra"]) == [
        pytest.approx(1.0, abs=1e-5),
        pytest.approx(0, abs=0.999),
    ]


def test_the_first_word_for_roberta_is_one_after_a_space(tmp_path: Path) -> None:
    """As bert-score had it until transformers 5, which ignores what it asks of the tokenizer."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate([*special, *alphabet])}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        RobertaModel(RobertaConfig(vocab_size=len(vocab), **sizes)).save_pretrained(tmp_path)
    RobertaTokenizer(vocab=vocab, merges=[]).save_pretrained(tmp_path)
    plain, ours = AutoTokenizer.from_pretrained(tmp_path), load_encoder(tmp_path).tokenizer
    assert plain("cat")["input_ids"] != plain(" cat")["input_ids"]
    assert ours("cat")["input_ids"] == plain(" cat")["input_ids"]


def test_the_global_random_state_is_left_alone(encoder_folder: Path) -> None:
    before = torch.random.get_rng_state()
    load_encoder(encoder_folder)  # its pooler is not in the file, so transformers draws one
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_is_not_there(encoder_folder: Path, layer: int) -> None:
    with pytest.raises(ConfigError, match=f"has no layer {layer}; choose one of 1 to 2"):
        load_encoder(encoder_folder, layer)


@pytest.mark.parametrize("name", ["/no/such/folder", "./encoder", "~/no/such", "a/b/c", ""])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"there is no encoder .*; give a folder"):
        load_encoder(name)


def test_a_hub_name_that_cannot_be_had() -> None:
    with pytest.raises(CheckpointError, match="the encoder no/such-encoder cannot be loaded"):
        load_encoder("no/such-encoder")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file(encoder_folder: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_encoder(folder)


def test_weights_that_are_incomplete(encoder_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    bert = tiny_bert()
    state = {key: value for key, value in bert.state_dict().items() if "layer.1.output" not in key}
    bert.save_pretrained(folder, state_dict=state)
    with pytest.raises(CheckpointError, match=r"lacks encoder\.layer\.1\.output.*; it is incomplete"):
        load_encoder(folder)


@pytest.mark.parametrize("missing", ["pad", "ends"])
def test_a_tokenizer_that_is_not_like_berts(encoder_folder: Path, tmp_path: Path, missing: str) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    tokenizer = word_pieces(pad_token=None) if missing == "pad" else word_pieces()
    if missing == "ends":
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="is no encoder for bert-score"):
        load_encoder(folder)


def test_without_the_library(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bert_score.utils", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'potq\[bertscore\]'"):
        load_encoder(encoder_folder)


# ---- prompts


def test_prompts_are_evenly_spaced() -> None:
    found = prompts_of(torch.arange(50), 4, prompt_tokens=5, new_tokens=3)
    assert found.prompts.tolist() == [list(range(start, start + 5)) for start in (0, 12, 24, 36)]
    assert found.truths.tolist() == [list(range(start + 5, start + 8)) for start in (0, 12, 24, 36)]


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_no_prompt_overlaps_another(count: int, prompt_tokens: int, new_tokens: int, more: int) -> None:
    tokens = torch.arange(count * (prompt_tokens + new_tokens) + more)
    found = torch.cat(prompts_of(tokens, count, prompt_tokens=prompt_tokens, new_tokens=new_tokens), dim=1)
    assert found.shape == (count, prompt_tokens + new_tokens)
    assert found.unique().numel() == found.numel()
    with pytest.raises(DataError):
        prompts_of(tokens[more + 1 :], count, prompt_tokens=prompt_tokens, new_tokens=new_tokens)


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(DataError, match=r"1000 tokens, room for 7 prompts of 64 .* continuations of 64, not for 100; give"):
        prompts_of(torch.arange(1000))


@pytest.mark.parametrize("name", ["count", "prompt_tokens", "new_tokens"])
def test_no_prompts_at_all(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is 0; use at least 1"):
        prompts_of(torch.arange(1000), **{"count": 1, name: 0})


# ---- continuations


@pytest.fixture
def prompts() -> list[torch.Tensor]:
    """Seven prompts of 1 to 16 tokens."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 260, (1 + 5 * i % 17,), generator=generator) for i in range(7)]


def tiny_gpt2() -> GPT2LMHeadModel:
    """Positions are learned here, so padding must not move them; no token is its end."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=260, bos_token_id=None, eos_token_id=None, **sizes)).eval()


def as_lists(found: list[torch.Tensor]) -> list[list[int]]:
    return [row.tolist() for row in found]


def alone(model: Any, prompt: torch.Tensor, new_tokens: int) -> list[int]:
    ids = prompt[None]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new_tokens, "do_sample": False}
    written: list[int] = model.generate(ids, **options)[0, len(prompt) :].tolist()
    end = model.generation_config.eos_token_id
    return written[: written.index(end)] if end in written else written


@pytest.mark.parametrize("kind", ["llama", "packed", "gpt2"])
@pytest.mark.parametrize("batch", [1, 4])
def test_greedy_text_whatever_the_batch(
    request: pytest.FixtureRequest, prompts: list[torch.Tensor], kind: str, batch: int
) -> None:
    fixtures = {"llama": "tiny_model", "packed": "packed_model"}
    model = request.getfixturevalue(fixtures[kind]) if kind in fixtures else tiny_gpt2()
    found = continuations(model, prompts, new_tokens=12, batch=batch)
    assert as_lists(found) == [alone(model, prompt, 12) for prompt in prompts]


def test_a_matrix_of_prompts(tiny_model: Any, tokens: torch.Tensor) -> None:
    assert as_lists(continuations(tiny_model, tokens)) == as_lists(continuations(tiny_model, list(tokens)))
    assert continuations(tiny_model, []) == []


@pytest.mark.parametrize("several", [False, True])
def test_text_ends_at_eos(tiny_model: Any, prompts: list[torch.Tensor], several: bool) -> None:
    tiny_model.generation_config.eos_token_id = None
    whole = as_lists(continuations(tiny_model, prompts, new_tokens=12))
    assert {len(row) for row in whole} == {12}
    ends = [whole[0][5], whole[1][0]] if several else [whole[0][5]]
    tiny_model.generation_config.eos_token_id = ends if several else ends[0]
    cut = [row[: min([row.index(end) for end in ends if end in row], default=12)] for row in whole]
    assert as_lists(continuations(tiny_model, prompts, new_tokens=12, batch=4)) == cut
    assert len(cut[0]) <= 5
    assert not several or cut[1] == []


def test_the_model_is_left_as_it_was(tiny_model: Any, prompts: list[torch.Tensor]) -> None:
    expected = as_lists(continuations(tiny_model, prompts, new_tokens=12))
    settings = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0, "num_beams": 3}
    tiny_model.generation_config.update(**settings)
    before = tiny_model.generation_config.to_dict(), torch.random.get_rng_state()
    tiny_model.train()
    tiny_model.model.layers[0].eval()
    assert as_lists(continuations(tiny_model, prompts, new_tokens=12)) == expected
    assert tiny_model.generation_config.to_dict() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert tiny_model.training
    assert not tiny_model.model.layers[0].training


def test_progress_is_called_after_each_batch(tiny_model: Any, prompts: list[torch.Tensor]) -> None:
    calls: list[tuple[Any, ...]] = []
    continuations(tiny_model, prompts, new_tokens=2, batch=4, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(4, 7), (7, 7)]
    assert all(call[2].endswith(" tokens/s") for call in calls)


def test_what_does_not_fit_the_model(tiny_model: Any) -> None:
    assert [len(row) for row in continuations(tiny_model, [torch.ones(127, dtype=torch.long)], new_tokens=1)] <= [1]
    with pytest.raises(DataError, match="a prompt of 127 tokens and 2 new ones exceed the model's limit of 128; use fewer"):
        continuations(tiny_model, [torch.ones(127, dtype=torch.long)], new_tokens=2)


@pytest.mark.parametrize("name", ["new_tokens", "batch"])
def test_no_continuation_at_all(tiny_model: Any, tokens: torch.Tensor, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is 0; use at least 1"):
        continuations(tiny_model, tokens, **{name: 0})  # type: ignore[arg-type]


def test_an_empty_prompt(tiny_model: Any, tokens: torch.Tensor) -> None:
    with pytest.raises(DataError, match="prompt 1 is empty"):
        continuations(tiny_model, [tokens[0], tokens[0][:0]])


# ---- the two together


@pytest.fixture
def places() -> Prompts:
    generator = torch.Generator().manual_seed(2)
    return prompts_of(torch.randint(1, 260, (200,), generator=generator), 5, prompt_tokens=20, new_tokens=10)


def test_the_three_scores(tiny_folder: Path, packed_model: Any, tiny_model: Any, places: Prompts, encoder: Encoder) -> None:
    tokenizer = potq.load_tokenizer(tiny_folder)
    before = tokenizer.init_kwargs.copy(), tokenizer.padding_side, tokenizer.pad_token
    found = continuation_score(packed_model, tokenizer, places, encoder, reference=tiny_model, batch=3)

    def texts(rows: Any) -> list[str]:
        return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    own, full = (texts(continuations(model, places.prompts, new_tokens=10)) for model in (packed_model, tiny_model))
    true = texts(places.truths)
    assert found.reference_true is not None
    assert found.model_reference is not None
    for f1, pair in [
        (found.model_true, (own, true)),
        (found.reference_true, (full, true)),
        (found.model_reference, (own, full)),
    ]:
        assert f1.each == pytest.approx(encoder.f1(*pair), abs=1e-6)
        assert f1.mean == pytest.approx(sum(f1.each) / 5)
    assert (tokenizer.init_kwargs, tokenizer.padding_side, tokenizer.pad_token) == before


def test_a_model_agrees_with_itself(tiny_folder: Path, tiny_model: Any, places: Prompts, encoder: Encoder) -> None:
    tokenizer = potq.load_tokenizer(tiny_folder)
    found = continuation_score(tiny_model, tokenizer, places, encoder, reference=tiny_model)
    assert found.model_reference is not None
    assert found.model_reference.each == pytest.approx([1.0] * 5, abs=1e-5)
    assert found.model_true == found.reference_true


def test_the_protocol_in_words(tiny_folder: Path, tiny_model: Any, places: Prompts, encoder: Encoder) -> None:
    found = continuation_score(tiny_model, potq.load_tokenizer(tiny_folder), places, encoder)
    assert found.library.startswith("bert-score 0.")
    assert found.protocol == (
        f"BERTScore F1 ({found.library}, layer 2 of {encoder.name}, not rescaled, no idf): "
        "5 evenly spaced prompts of 20 tokens, greedy continuations of up to 10"
    )
    fields = json.loads(json.dumps(found.to_dict()))
    assert fields["protocol"] == found.protocol
    assert fields["model_true"] == {"mean": found.model_true.mean, "each": list(found.model_true.each)}
    assert (fields["reference_true"], fields["model_reference"]) == (None, None)
    assert (fields["encoder"], fields["layer"]) == (encoder.name, 2)


def test_a_reference_of_another_vocabulary(tiny_folder: Path, tiny_model: Any, places: Prompts, encoder: Encoder) -> None:
    other = tiny_gpt2()
    other.config.vocab_size = 50257
    with pytest.raises(
        PotqError, match="a vocabulary of 50257 tokens, the model of 260; compare with the model it was made"
    ):
        continuation_score(tiny_model, potq.load_tokenizer(tiny_folder), places, encoder, reference=other)
