"""The papers' GPT-2 experiment in one command: ``python -m benchmarks.papers.gpt2 MODEL``, MODEL being ``gpt2`` or a folder.

Measured are full precision; rounding to nearest at 4, 5 and 6 bits of exponent (2506.00315); 15 levels, rounded to nearest
and trained quantized (2601.02298). Each is done as the paper does it (one scale per tensor, the largest weight on the last
level, rounding in the log domain, scales that stay where they are) and with potq's settings beside it (a scale of least
squared error per group of 64, rounding to the nearest level, searched scales). Linears, wte (and so the head) and wpe are
quantized. Training in full precision for as many steps shows what the text alone brings.

A row has perplexity (GPTQ protocol, windows as long as the model allows) with exact activations and with the kernels' int8
ones, the checkpoint's bytes, tokens a second of greedy generation (int8 activations, in turn with full precision, medians),
and with ``--encoder`` BERTScore of greedy continuations. ``--text`` alone is split: nine tenths to train on, the last tenth
to evaluate; without it WikiText-2 is used (POTQ_DATA's copy, or the hub's). A GPU is used if there is one; GPT-2 wants one
for the default number of steps. Rows are kept as they come; a killed run resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.common.results import summary
from benchmarks.papers.goals import NANO
from benchmarks.papers.report import show
from benchmarks.papers.settings import FULL, SETTINGS, Setting
from benchmarks.qat.loop import Run, Training, pack
from potq.data.text import read_text
from potq.data.tokens import choose_window, tokenize
from potq.evaluate.bertscore import continuation_score
from potq.evaluate.continuations import NEW_TOKENS, PROMPT_TOKENS, Prompts, continuations, prompts_of
from potq.evaluate.encoder import Encoder, load_encoder
from potq.evaluate.perplexity import perplexity
from potq.kernels import set_activations
from potq.nn.properties import evaluation_mode

HUB = "Salesforce/wikitext:wikitext-2-raw-v1"
CALIBRATION = 64  # windows
SEED = 0


class Texts(NamedTuple):
    """Token ids, 1-D."""

    train: Tensor
    evaluation: Tensor


@dataclass(frozen=True)
class Experiment:
    """One model on one text."""

    source: str
    base: Any
    """The model in full precision."""
    texts: Texts
    training: Training
    windows: int | None
    encoder: Encoder | None
    prompts: int
    rounds: int
    device: torch.device

    def row(self, setting: Setting) -> Row:
        began = time.perf_counter()
        model, bits = self._made(setting)
        seconds = time.perf_counter() - began
        found = summary(perplexity(model, self.texts.evaluation, max_windows=self.windows))
        row = {**found, "setting": setting.name, "kind": setting.kind, "bits_per_weight": bits, "seconds": seconds}
        row["bytes"] = stored_bytes(model, packed=setting.config is not None)
        if self.encoder is not None:
            row["bertscore"] = self._bertscore(model)
        if setting.config is not None:
            set_activations(model, "int8")
            row["int8"] = summary(perplexity(model, self.texts.evaluation, max_windows=self.windows))
        return {**row, "speed": self._speed(model)}

    @cached_property
    def tokenizer(self) -> Any:
        return potq.load_tokenizer(self.source)

    def _load(self) -> Any:
        return potq.load(self.source, dtype="float32", device=self.device)

    def _made(self, setting: Setting) -> tuple[Any, float]:
        """The setting's model, with exact activations, and its bits per weight."""
        if setting.kind == "PTQ":
            model = self._load()
            report = potq.quantize(model, setting.config, self._calibration(setting), seed=SEED)
            set_activations(model, "float")
            return model, report.quantized_bits_per_weight
        if setting.kind == FULL:
            return self.base, 32.0
        run = Run(self._load(), self.texts.train, self.training, SEED)
        if setting.config is not None and setting.settings is not None:
            run.quantize(setting.config, setting.settings)
        run.until(self.training.steps)
        return run.model.eval(), pack(run.model) if setting.config is not None else 32.0

    def _calibration(self, setting: Setting) -> list[Tensor] | None:
        if not setting.config.has_calibrated_effort:
            return None
        window = choose_window(self.base, None, 512)
        starts = torch.randperm(len(self.texts.train) // window, generator=torch.Generator().manual_seed(SEED))[:CALIBRATION]
        return [self.texts.train[start : start + window][None].to(self.device) for start in (starts * window).tolist()]

    def _bertscore(self, model: Any) -> dict[str, Any]:
        assert self.encoder is not None
        found = continuation_score(model, self.tokenizer, self._places, self.encoder, reference=self._continued)
        kinds = {"model_true": found.model_true, "full_true": found.reference_true, "model_full": found.model_reference}
        return {**{name: score.mean for name, score in kinds.items() if score is not None}, "protocol": found.protocol}

    @cached_property
    def _places(self) -> Prompts:
        prompt, new = self._lengths()
        return prompts_of(self.texts.evaluation, self.prompts, prompt_tokens=prompt, new_tokens=new)

    @cached_property
    def _continued(self) -> list[Tensor]:
        """What full precision writes there."""
        prompts, truths = self._places
        return continuations(self.base, prompts, new_tokens=truths.shape[1])

    def _lengths(self) -> tuple[int, int]:
        """Tokens of a prompt, and to be written after it."""
        limit = choose_window(self.base, None, 2048)
        return min(PROMPT_TOKENS, limit // 2), min(NEW_TOKENS, limit // 2)

    def _speed(self, model: Any) -> dict[str, float]:
        """Tokens a second of ``model`` and of full precision, in turn; the ratio is the median over rounds."""
        prompt, new = self._lengths()
        ids = self.texts.evaluation[None, :prompt].to(self.device)
        times = [(generation_time(self.base, ids, new), generation_time(model, ids, new)) for _ in range(self.rounds + 1)]
        ratio = statistics.median(full / own for full, own in times[1:])  # the first warms up
        full, own = (statistics.median(column) for column in zip(*times[1:], strict=True))
        return {"tokens_per_second": new / own, "full": new / full, "ratio": ratio}


@torch.no_grad()
def generation_time(model: Any, ids: Tensor, tokens: int) -> float:
    """Seconds to write ``tokens`` after ``ids (1, length)``: the likeliest ones, with cached keys and values."""
    cache = None
    with evaluation_mode(model):
        began = time.perf_counter()
        for _ in range(tokens):
            found = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, ids = found.past_key_values, found.logits[:, -1:].argmax(-1)
        ids.tolist()  # waits for a GPU
        return time.perf_counter() - began


def stored_bytes(model: Any, *, packed: bool) -> int:
    """Bytes of the checkpoint's tensors."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        if packed:
            potq.save(model, target)
        else:
            model.save_pretrained(target)
        return sum(file.stat().st_size for file in target.glob("*.safetensors"))


def read_texts(options: argparse.Namespace, tokenizer: Any) -> Texts:
    """What is trained on, at most ``--tokens`` tokens, and what is evaluated."""
    data = Path(options.data) / "wikitext2" if options.data is not None else None
    if options.text is None:
        test = str(data / "hf_joined_test.txt") if data is not None else f"{HUB}:test"
        own = next(iter(sorted(data.glob("*train*"))), None) if data is not None else None
        train = options.train or (str(own) if own is not None else f"{HUB}:train")
        texts = Texts(*(tokenize(tokenizer, read_text(source)) for source in (train, test)))
    elif options.train is not None:
        texts = Texts(*(tokenize(tokenizer, read_text(source)) for source in (options.train, options.text)))
    else:
        tokens = tokenize(tokenizer, read_text(options.text))
        texts = Texts(tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :])
    return Texts(texts.train[: options.tokens], texts.evaluation)


def training_of(options: argparse.Namespace, limit: int) -> Training:
    return Training(
        steps=options.steps,
        batch=options.batch,
        length=min(options.length, limit),
        rate=options.rate,
        least_rate=options.rate / 10,
        warmup=options.steps // 20,
        decay=0.0,
        beta2=0.95,
    )


def protocol(options: argparse.Namespace, experiment: Experiment) -> dict[str, Any]:
    texts = {name: f"{len(tokens)} tokens, {_digest(tokens)}" for name, tokens in experiment.texts._asdict().items()}
    base = experiment.base
    prompt, new = experiment._lengths()
    return {
        "model": f"{_short(options.model)}: {type(base).__name__}, {sum(p.numel() for p in base.parameters())} parameters",
        "texts": texts,
        "perplexity": f"GPTQ protocol, {options.windows or 'all'} windows of {choose_window(base, None, 2048)} tokens",
        "training": {**asdict(experiment.training), "optimizer": "AdamW, linear rise, cosine fall; next-token loss alone"},
        "settings": {setting.name: setting.to_dict() for setting in SETTINGS},
        "speed": f"{new} tokens after {prompt}, one sequence; median of {options.rounds} rounds, full precision in turn",
        "bertscore": f"{options.prompts} prompts, {_short(options.encoder)}"
        if options.encoder
        else "left out: no --encoder",
        "bytes": "of the checkpoint's safetensors files",
        "device": str(experiment.device),
        "threads": torch.get_num_threads(),
    }


def _short(source: str) -> str:
    """A folder's name, for others to read; a hub name as it is."""
    return Path(source).name if Path(source).is_dir() else source


def _digest(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:12]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="gpt2, another name on the hub, or a folder")
    parser.add_argument("--text", help="what is evaluated: a file, or a dataset as name:config:split")
    parser.add_argument("--train", help="what is trained on; default: nine tenths of --text, or WikiText-2's training set")
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder with wikitext2/")
    parser.add_argument("--tokens", type=int, help="of the training text, at most")
    parser.add_argument("--windows", type=int, help="of the evaluated text, at most")
    parser.add_argument("--steps", type=int, default=1000, help="of quantized training")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--length", type=int, default=512, help="tokens a sequence, at most")
    parser.add_argument("--rate", type=float, default=1e-4, help="highest learning rate")
    parser.add_argument("--encoder", help="for BERTScore: a folder or a hub name, e.g. roberta-large")
    parser.add_argument("--prompts", type=int, default=100, help="for BERTScore")
    parser.add_argument("--rounds", type=int, default=7, help="for the speed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--name", default="paper_gpt2", help="of the results; default: %(default)s")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    texts = read_texts(options, potq.load_tokenizer(options.model))
    base = potq.load(options.model, dtype="float32", device=device)
    encoder = load_encoder(options.encoder, device=device) if options.encoder else None
    encoder = replace(encoder, name=_short(encoder.name)) if encoder is not None else None
    training = training_of(options, choose_window(base, None, 2048))
    experiment = Experiment(
        options.model, base, texts, training, options.windows, encoder, options.prompts, options.rounds, device
    )
    used = protocol(options, experiment)
    results = replace(NANO, name=options.name)
    rows = results.load(used)
    for setting in SETTINGS:
        if any(row["setting"] == setting.name for row in rows):
            continue
        rows.append(experiment.row(setting))
        print("{setting}: perplexity {perplexity:.3f} after {seconds:.0f} s".format(**rows[-1]), flush=True)
        results.write(used, rows)
    show(rows)
    if encoder is None:
        print("BERTScore was left out: give --encoder")
    print_goals(NANO.judge(rows))


if __name__ == "__main__":
    main()
