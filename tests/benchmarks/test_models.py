"""The table of architectures: what a row tries, how its outcomes are told apart, what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import potq
from benchmarks.common.goals import verdict
from benchmarks.models import check
from benchmarks.models.architectures import ARCHITECTURES, BY_NAME, MODULES
from benchmarks.models.goals import OUTCOMES, outcomes, table
from benchmarks.models.report import Notes, line
from benchmarks.models.table import tried
from benchmarks.models.tiny import SMALL, shrunk
from potq.errors import ModelError
from potq.nn.precision import mixed_precision
from potq.ptq.blocks import text_chain


def test_architectures_are_many_and_each_is_there_once() -> None:
    assert len(BY_NAME) == len(ARCHITECTURES) >= 60
    assert len({each.kind for each in ARCHITECTURES}) == 8
    assert sum(each.kind == MODULES for each in ARCHITECTURES) >= 3


def test_a_config_is_made_small_by_whatever_names_it_has() -> None:
    llama, gpt2 = shrunk("LlamaConfig", {}), shrunk("GPT2Config", {"n_layer": 3})
    assert (llama.hidden_size, llama.vocab_size) == (gpt2.n_embd, gpt2.vocab_size) == (64, SMALL["vocab_size"])
    assert (llama.num_hidden_layers, gpt2.num_hidden_layers) == (2, 3)


@pytest.mark.parametrize("name", ["qwen3", "bert, classifier", "Conv1d"])
def test_a_row_tries_everything_that_applies(name: str, tmp_path: Path, one_thread: None) -> None:
    row = check.row(BY_NAME[name], tmp_path)
    assert (
        set(OUTCOMES) & row.keys()
        == {
            "qwen3": set(OUTCOMES),
            "bert, classifier": set(OUTCOMES) - {"generated"},
            "Conv1d": set(OUTCOMES) - {"generated", "engine", "gguf", "streamed"},
        }[name]
    )
    assert not [found for _, _, found in outcomes([row]) if found.keys() & {"raw", "wrong"}]
    assert 0 < row["fast"]["done"]["quantized"] < 1
    assert row["saved"] == {"done": "exact"}
    assert row["dequantized"]["done"] < 1e-4


ODD = {
    "camembert": "its head owns the weight that the embedding reads",
    "marian": "its positions are computed, and never saved",
    "t5gemma": "its head is tied to the decoder's embedding",
    "nomic_bert": "transformers stores queries, keys and values as one",
    "clip": "transformers does not know its input embedding",
    "nanochat": "nothing of it stays in full precision",
}


@pytest.mark.parametrize("name", ODD)
def test_what_transformers_treats_in_another_way_works(name: str, tmp_path: Path, one_thread: None) -> None:
    row = check.row(BY_NAME[name], tmp_path)
    assert {key for _, key, found in outcomes([row]) if "done" not in found} == {"gguf"}


def test_blocks_that_mixed_precision_breaks_are_calibrated_without(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    model, batch = BY_NAME["dbrx"].make(), BY_NAME["dbrx"].inputs(1)["input_ids"]
    with pytest.raises(RuntimeError, match="same scalar type"), mixed_precision(batch.device):
        model(batch)
    report = potq.quantize(model, potq.PoTConfig("pot4", effort="balanced"), [batch])
    assert "gptq+descent" in {module.algorithm for module in report.modules}
    chains = [text_chain(BY_NAME[name].make(), [batch], torch.clone) for name in ("dbrx", "llama")]
    assert [chain.calls[0].text for chain in chains] == [False, True]


def test_the_same_seed_makes_the_same_model() -> None:
    one, other = (BY_NAME["llama"].make() for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def _raises(error: Exception) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "key", "said"),
    [
        (lambda: 3, "done", 3),
        (_raises(ModelError("not\n this")), "refused", "not this"),
        (_raises(check.WrongError("other bits")), "wrong", "other bits"),
        (_raises(KeyError("x")), "raw", "KeyError: 'x' (test_models.py:"),
    ],
)
def test_outcomes_tell_a_refusal_from_a_bug(work: Callable[[], object], key: str, said: Any, tmp_path: Path) -> None:
    found = check.outcome(work, tmp_path)
    assert list(found) == [key]
    assert found[key] == said or str(found[key]).startswith(str(said))


def test_outputs_that_differ_in_a_bit_are_wrong() -> None:
    one = torch.ones(3)
    check.require_equal([one], [one.clone()], "loaded")
    with pytest.raises(check.WrongError, match=r"loaded, its outputs differ, by 1\.2e-07 of the largest"):
        check.require_equal([one], [torch.nextafter(one, torch.tensor(2.0))], "loaded")


class Mixture(nn.Module):
    """Two experts of which one is a linear, a router that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Bilinear(8, 8, 3)])
        self.router = nn.Linear(8, 2)


def test_the_share_of_experts_leaves_routers_and_biases_out() -> None:
    model, packed = Mixture(), Mixture()
    report = potq.quantize(packed, potq.PoTConfig("pot4"))
    assert list(check.expert_modules(model)) == ["experts"]
    assert check.expert_share(model, report, ["experts"]) == 64 / (64 + 192)


def test_an_adapter_that_learns_nothing_is_noticed() -> None:
    linear = nn.Linear(4, 4)
    assert check.trained(linear, {"input": torch.ones(2, 4)}) < 1
    still = nn.Linear(4, 4)
    still.register_forward_hook(lambda module, args, output: output.detach() + 0 * module.weight.sum())
    with pytest.raises(check.WrongError, match="the loss does not fall"):
        check.trained(still, {"input": torch.ones(2, 4)})


def test_a_process_that_dies_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.models.table.SECONDS", 0)
    monkeypatch.setattr("benchmarks.models.table._PRELOADED", [])  # which takes seconds
    row = tried(BY_NAME["llama"])
    assert row["fast"] == {"raw": "no answer in 0 s"}
    goals = {goal["name"]: verdict(goal) for goal in table([row])}
    assert goals["architectures with an exception that is not potq's"] == "missed"
    assert goals["architectures with a wrong result"] == "met"
    assert goals["architectures, at least"] == "missed"
    assert set(map(verdict, table([]))) == {"not measured"}


def test_a_line_says_what_and_numbers_the_reasons() -> None:
    fast = {
        "quantized": 0.5,
        "experts": None,
        "bits": 6.123,
        "left": [("a.*.b", "Conv1d with a 4x1 weight is not supported", 0.4)],
    }
    row = {
        **{"name": "some", "kind": "encoders", "class": "SomeModel", "weights": 10, "fast": {"done": fast}},
        **{"saved": {"done": "exact"}, "streamed": {"wrong": "other bits"}, "lora": {"done": 0.5}},
        "balanced": {"done": {"weights": {"gptq+descent": 75, "rtn/mse (no text reaches it)": 25, "embedding or head": 9}}},
        "gguf": {"refused": "models of type 'some' cannot be exported"},
        "engine": {"done": "the engine does not know it"},
    }
    notes = Notes()
    cells = line(row, notes)
    assert cells == [
        *("some", "50.0 %", "-", "6.12", "yes, but 25.0 % (1)", "yes", "**wrong** (2)", "modules", "yes", "no (3)"),
        "Conv1d 40.0 %",
    ]
    assert notes.texts == ["rounded to nearest: no text reaches it", "other bits", "models of type this cannot be exported"]
