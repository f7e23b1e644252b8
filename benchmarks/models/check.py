"""One architecture, tried: a row of ``results/models.json``.

What was tried is an outcome, a dict of one key: ``done`` (with what is known of it), ``refused`` (an error of potq's kind,
which says why), ``wrong`` (it ran, and is not as it should be) or ``raw`` (any other exception, which is a bug).
"""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import potq
from benchmarks.common.goals import Row
from benchmarks.common.tokenizer import byte_tokenizer
from benchmarks.models.architectures import Architecture
from benchmarks.models.tiny import VOCABULARY
from potq.engine.engine import Engine
from potq.errors import EngineError, ModelError, PotqError
from potq.export.gguf.write import export_gguf
from potq.kernels import set_activations
from potq.nn.packed import PoTLinear
from potq.nn.report import QuantReport

SCHEME, BATCHES, NEW_TOKENS, STEPS, ADAPTED = "pot4", 4, 4, 5, 4
Outcome = dict[str, Any]


class WrongError(Exception):
    """It ran, and is not as it should be."""


def row(architecture: Architecture, folder: Path) -> Row:
    """Try everything; ``folder`` is for files. What cannot even be made, or computes NaN, raises."""
    trial = _Trial(architecture, folder)
    facts = {
        "name": architecture.name,
        "kind": architecture.kind,
        "class": type(trial.full).__name__,
        "weights": trial.weights,
    }
    fast = outcome(trial.fast, folder)
    later = {
        "dequantized": trial.against_dequantized,
        "saved": trial.saved,
        "streamed": trial.streamed,
        "balanced": trial.balanced,
        "engine": trial.engine,
        "generated": trial.generated,
        "lora": trial.lora,
        "gguf": trial.gguf,
    }
    if "done" not in fast:
        return facts | {"fast": fast}
    return facts | {"fast": fast} | {name: outcome(work, folder) for name, work in later.items() if trial.applies(name)}


def outcome(work: Callable[[], object], folder: Path) -> Outcome:
    """What comes of ``work``, in one line; ``folder`` is left out of it, for it has another name in every run."""

    def line(error: Exception) -> str:
        return " ".join(str(error).replace(f"{folder}/", "").split())

    try:
        return {"done": work()}
    except WrongError as error:
        return {"wrong": line(error)}
    except PotqError as error:
        return {"refused": line(error)}
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return {"raw": f"{type(error).__name__}: {line(error)[:200]} ({Path(last.filename).name}:{last.lineno})"}


class _Trial:
    """An architecture that is tried."""

    def __init__(self, architecture: Architecture, folder: Path) -> None:
        self.of, self.folder, self.config = architecture, folder, potq.PoTConfig(SCHEME)
        self.full, self.inputs = architecture.make(), architecture.inputs(0)
        self.weights = sum(parameter.numel() for parameter in self.full.parameters())
        if not all(bool(tensor.isfinite().all()) for tensor in outputs(self.full, self.inputs)):
            raise ValueError(f"{architecture.name} computes NaN before anything is done to it")
        self.tokenizer = byte_tokenizer("the cat sat on the mat, then the other cat", VOCABULARY - 8)
        if not architecture.plain:
            self.full.save_pretrained(folder / "full")
        self.packed = architecture.make()

    def applies(self, name: str) -> bool:
        """Whether there is something to try: plain modules know no folders of transformers', only text goes on."""
        if name in ("streamed", "gguf", "engine"):
            return not self.of.plain
        return self.of.generates if name == "generated" else True

    def fast(self) -> Row:
        """Round to nearest: shares of the weights, and what stays."""
        experts = list(expert_modules(self.full))
        report = potq.quantize(self.packed, self.config)
        assert report.bits_per_weight is not None
        return {
            "quantized": quantized_weights(report) / self.weights,
            "experts": expert_share(self.full, report, experts) if experts else None,
            "bits": report.bits_per_weight,
            "left": left_over(self.full, report),
        }

    def against_dequantized(self) -> float:
        """The largest difference to the same weights on torch's own products, relative to the largest output."""
        model = self.of.make()
        potq.quantize(model, self.config)
        set_activations(model, "float")
        found = outputs(model, self.inputs)
        model.dequantize()
        expected = outputs(model, self.inputs)
        return max(_difference(*pair) for pair in zip(found, expected, strict=True))

    def saved(self) -> str:
        """Save, and load by potq and by its own class; every bit of the outputs is to be the same."""
        self._save(self.packed, "packed")
        for how, load in self._loaders("packed").items():
            require_equal(outputs(load(), self.inputs), outputs(self.packed, self.inputs), f"loaded by {how}")
        return "exact"

    def streamed(self) -> str:
        """Packed while it loads, by its own class; the bits are to be those of quantizing in memory."""
        model = type(self.full).from_pretrained(self.folder / "full", quantization_config=self.config).eval()
        require_equal(outputs(model, self.inputs), outputs(self.packed, self.inputs), "packed while it loads")
        return "exact"

    def balanced(self) -> Row:
        """Calibrate; how many of the matrices were, by label; saved and loaded as well."""
        model, batches = self.of.make(), [self.of.inputs(seed) for seed in range(1, BATCHES + 1)]
        given = [batch["input_ids"] for batch in batches] if self.of.generates else batches
        report = potq.quantize(model, potq.PoTConfig(SCHEME, effort="balanced"), given)
        self._save(model, "balanced")
        for how, load in self._loaders("balanced").items():
            require_equal(outputs(load(), self.inputs), outputs(model, self.inputs), f"balanced, loaded by {how}")
        labels: dict[str, int] = {}
        for module in report.modules:
            label = "embedding or head" if module.kind in ("embedding", "head") else module.algorithm
            labels[label] = labels.get(label, 0) + math.prod(module.shape)
        return {"weights": labels}

    def engine(self) -> str:
        """The decode engine on the packed folder; where it does not know the model, why it says so."""
        self._require_folder()
        try:
            with Engine(self.folder / "packed", threads=1) as engine:
                engine.generate([1, 2, 3], max_new_tokens=NEW_TOKENS).finish()
        except EngineError as error:
            return str(error).replace(f"{self.folder}/", "")
        return "engine"

    def generated(self) -> int:
        """Tokens that transformers' modules write."""
        ids = self.inputs["input_ids"][:1]
        new = self.packed.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        return int(new.shape[1] - ids.shape[1])

    def lora(self) -> float:
        """Train an adapter on packed linears; the loss after a few steps over the loss before."""
        self._require_folder()
        model = next(iter(self._loaders("packed").values()))()
        names = [name for name, module in model.named_modules() if isinstance(module, PoTLinear) and _may_adapt(name)]
        if not names:
            raise ModelError("it has no packed linear that an adapter could stand beside")
        try:
            return adapted(model, names[:ADAPTED], self.inputs)
        except RuntimeError as error:
            try:
                adapted(self.of.make(), names[:ADAPTED], self.inputs)
            except RuntimeError as own:
                if str(own) == str(error):
                    raise ModelError(f"in full precision it does not train either ({str(own).partition(':')[0]})") from own
            raise

    def gguf(self) -> str:
        """Export the packed model."""
        export_gguf(self.packed, self.folder / "model.gguf", self.tokenizer, allow_8bit=True)
        return "exact"

    def _require_folder(self) -> None:
        if not (self.folder / "packed").is_dir():
            raise ModelError("it was not saved")

    def _save(self, model: Any, name: str) -> None:
        if self.of.plain:
            potq.save_module(model, self.folder / name)
        else:
            potq.save(model, self.folder / name, self.tokenizer if self.of.generates else None)

    def _loaders(self, name: str) -> Mapping[str, Callable[[], Any]]:
        path = self.folder / name
        if self.of.plain:
            return {"load_module": lambda: potq.load_module(path, self.of.make)}
        return {
            type(self.full).__name__: lambda: type(self.full).from_pretrained(path),
            "potq.load": lambda: potq.load(path),
        }


@torch.no_grad()
def outputs(model: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Every float tensor that a model puts out, caches left out."""
    return list(_floats(model.eval()(**inputs)))


def _floats(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            if "cache" not in key and "past" not in key:
                yield from _floats(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _floats(value)


def require_equal(found: list[Tensor], expected: list[Tensor], what: str) -> None:
    """Refuse outputs that differ in a bit."""
    if len(found) != len(expected) or not all(map(torch.equal, found, expected)):
        largest = max(map(_difference, found, expected), default=math.nan)
        raise WrongError(f"{what}, its outputs differ, by {largest:.2g} of the largest")


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def expert_modules(model: nn.Module) -> Iterator[str]:
    """Names of the modules that hold experts, routed or shared, but not their routers."""
    for name, module in model.named_modules():
        alone = re.fullmatch(r"(shared_)?experts?", name.rpartition(".")[2])
        if alone or re.search(r"Experts?$", type(module).__name__):
            yield name


def expert_share(model: nn.Module, report: QuantReport, experts: list[str]) -> float:
    """Of the weights of experts, biases left out, those that are quantized."""
    inside = tuple(f"{name}." for name in experts)
    every = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name.startswith(inside) and parameter.ndim > 1 and not name.endswith("bias")
    )
    done = sum(math.prod(module.shape) for module in report.modules if f"{module.name}.".startswith(inside))
    return done / every


def quantized_weights(report: QuantReport) -> int:
    """How many, tied ones once."""
    return sum(math.prod(module.shape) for module in report.modules)


def left_over(model: nn.Module, report: QuantReport) -> list[tuple[str, str, float]]:
    """Matrices in full precision, alike ones together: name, reason, share of the model's bytes; the largest first."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    found: dict[tuple[str, str], int] = {}
    for skipped in report.skipped:
        key = re.sub(r"(?<=\.)\d+(?=\.)", "*", skipped.name), skipped.reason
        found[key] = found.get(key, 0) + skipped.nbytes
    return [(*key, size / total) for key, size in sorted(found.items(), key=lambda item: -item[1])]


def _may_adapt(name: str) -> bool:
    """peft refuses ``out_proj`` of models of Mamba's kind; a head is not where adapters go."""
    return name.rpartition(".")[2] not in ("out_proj", "lm_head", "conv1d")


def adapted(model: nn.Module, names: list[str], inputs: Mapping[str, Tensor]) -> float:
    """Put an adapter of peft's on the modules ``names`` and train it, as :func:`trained`."""
    from peft import LoraConfig, get_peft_model

    return trained(get_peft_model(model, LoraConfig(r=4, target_modules=names)), inputs)


def trained(model: nn.Module, inputs: Mapping[str, Tensor]) -> float:
    """A few steps towards random outputs: the last loss over the first."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    first, last = math.nan, math.nan
    for step in range(STEPS):
        loss = _distance(list(_floats(model(**inputs))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (float(loss.detach()), last) if step == 0 else (first, float(loss.detach()))
    if not last < first:
        raise WrongError(f"the loss does not fall: {first:.6g}, then {last:.6g}")
    return last / first


def _distance(found: list[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.randn(tensor.shape, generator=generator) for tensor in found)
    return torch.stack([(tensor - target).square().mean() for tensor, target in zip(found, targets, strict=True)]).sum()
