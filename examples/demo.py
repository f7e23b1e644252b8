"""The main job on a real pretrained model: quantize SmolLM2-135M, save, load, and compare with full precision.

``make demo`` runs it. Everything it needs is installed: the model comes in a package, the text with Python.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from torch import nn

import potq
from potq.cli.console import progress_bar, quiet_libraries
from potq.data.text import read_text
from potq.data.tokens import tokenize
from potq.errors import EngineError
from potq.evaluate.perplexity import perplexity
from potq.kernels import Explanation, explain
from potq.nn.packed_model import packed_modules

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = "The capital of France is"
WINDOW, WINDOWS = 1024, 8
NEW_TOKENS = 32


@dataclass
class Clock:
    """Prints a line when a step begins, and remembers how long it took."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        self.console.print(f"{what} ...", style="bold", highlight=False)
        began = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - began

    def show(self, setup: dict[str, float]) -> None:
        """Where the time went, the set-up included if its times are known."""
        table = Table("", "seconds", title="Where the time went", title_justify="left")
        for title, steps in (("set-up, once", setup), ("demo", self.seconds)):
            for what, seconds in steps.items():
                table.add_row(what, f"{seconds:.1f}")
            if steps:
                table.add_row(title, f"{sum(steps.values()):.1f}", style="bold", end_section=True)
        self.console.print(table)


@dataclass(frozen=True)
class Measured:
    """One column of the comparison."""

    size: int
    perplexity: float
    protocol: str
    text: str
    tokens_per_second: float


def measure(model: Any, tokenizer: Any, tokens: Tensor, size: int, label: str) -> Measured:
    with progress_bar(f"perplexity of {label}") as update:
        result = perplexity(model, tokens, window=WINDOW, max_windows=WINDOWS, progress=update)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    model.generate(ids, max_new_tokens=2, do_sample=False)  # the first call pays for set-up
    began = time.perf_counter()
    output = model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
    tokens_per_second = NEW_TOKENS / (time.perf_counter() - began)
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    return Measured(size, result.perplexity, result.protocol, text, tokens_per_second)


@dataclass(frozen=True)
class OnEngine:
    """The packed folder on the decode engine."""

    text: str
    tokens_per_second: float
    isa: str


def on_engine(folder: Path) -> OnEngine | EngineError:
    """What it generates, or why it cannot."""
    try:
        with potq.Engine(folder) as engine:
            engine.generate(PROMPT, max_new_tokens=2).finish()
            engine.reset()
            began = time.perf_counter()
            generation = engine.generate(PROMPT, max_new_tokens=NEW_TOKENS, stop_token_ids=()).finish()
            return OnEngine(PROMPT + generation.text, NEW_TOKENS / (time.perf_counter() - began), engine.isa)
    except EngineError as error:
        return error


def linear_kernel(model: nn.Module) -> Explanation:
    """What computes the products of the first packed linear, and so of all of them."""
    return next(explain(module) for module in packed_modules(model).values() if isinstance(module, nn.Linear))


def conclusion(kernel: Explanation) -> str:
    """In a sentence or two, what computed."""
    if kernel.backend == "reference":
        reasons = "; ".join(f"{backend}: {reason}" for backend, reason in kernel.rejected.items())
        return (
            "The packed linears ran on the torch reference, which unpacks every weight at every token: small, not fast. "
            f"Faster kernels could not run: {reasons}."
        )
    return (
        "The packed linears ran on the compiled kernels, which read packed weights and round the inputs of every product to "
        f"{kernel.activations}; perplexity and text include that."
    )


def speed(found: Measured | OnEngine, full: Measured, what: str) -> str:
    gain = found.tokens_per_second / full.tokens_per_second
    return f"{found.tokens_per_second:.1f} ({gain:.1f}x, {what})"


def show(
    console: Console, scheme: str, full: Measured, packed: Measured, engine: OnEngine | EngineError, kernel: Explanation
) -> None:
    name = str(kernel).partition(";")[0]  # without the reasons
    table = Table("", "full precision (float32)", scheme, title="SmolLM2-135M", title_justify="left")
    table.add_row(
        "weights", f"{full.size / 1e6:.1f} MB", f"{packed.size / 1e6:.1f} MB ({full.size / packed.size:.1f}x smaller)"
    )
    table.add_row("perplexity", f"{full.perplexity:.3f}", f"{packed.perplexity:.3f}")
    table.add_row("greedy continuation", full.text, packed.text)
    table.add_row("tokens/s, modules", f"{full.tokens_per_second:.1f}", speed(packed, full, name))
    if isinstance(engine, OnEngine):
        table.add_row("the engine's continuation", "", engine.text)
        table.add_row("tokens/s, engine", "", speed(engine, full, engine.isa))
    console.print(table)
    if isinstance(engine, EngineError):
        console.print(f"The decode engine could not run: {engine}", highlight=False)
    console.print(f"Perplexity on CPython's help topics; {packed.protocol}.", highlight=False)
    console.print(
        "The model's file stores its linears on a 4-bit grid already (GGUF Q4_1), from which full precision was made. "
        + conclusion(kernel),
        highlight=False,
    )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", default="apot4", help="preset of the linears")
    parser.add_argument("--output", type=Path, default=Path("demo-out"))
    parser.add_argument("--setup-times", type=Path, help="JSON of what the set-up took, to show it at the end")
    return parser.parse_args()


def run(scheme: str, output: Path, clock: Clock) -> None:
    console = clock.console
    with clock.step("load SmolLM2-135M"):
        model, tokenizer = potq.load("smollm2"), potq.load_tokenizer("smollm2")
        tokens = tokenize(tokenizer, read_text("pydoc"))
    with clock.step("evaluate full precision"):
        size = sum(parameter.nbytes for parameter in model.parameters())  # tied weights count once
        full = measure(model, tokenizer, tokens, size, "full precision")
    with clock.step(f"quantize to {scheme}"), progress_bar("quantizing") as update:
        report = potq.quantize(model, potq.PoTConfig(scheme), progress=update)
    with clock.step("save and load"):
        potq.save(model, output, tokenizer, force=True)
        packed_model = potq.load(output)
        size = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    with clock.step(f"evaluate {scheme}"):
        packed = measure(packed_model, tokenizer, tokens, size, scheme)
    with clock.step("generate on the decode engine"):
        engine = on_engine(output)
    console.print(*report.tables())
    show(console, scheme, full, packed, engine, linear_kernel(packed_model))


def main() -> None:
    chosen = options()
    quiet_libraries()
    clock = Clock(Console())
    run(chosen.scheme, chosen.output, clock)
    clock.show(json.loads(chosen.setup_times.read_text(encoding="utf-8")) if chosen.setup_times else {})
    clock.console.print(
        f"The checkpoint is in {chosen.output}/: try  .venv/bin/potq inspect {chosen.output}", highlight=False
    )


if __name__ == "__main__":
    main()
