"""The options of commands that write text: how it is drawn, and what computes it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from potq.cli.kernels import Activations

NewTokens: TypeAlias = Annotated[int, typer.Option("-n", "--max-new-tokens", min=1, help="Tokens to generate, at most.")]
Temperature: TypeAlias = Annotated[float, typer.Option(min=0, max=100, help="0 is greedy.")]
TopK: TypeAlias = Annotated[int, typer.Option(min=0, help="Sample from the k likeliest tokens; 0 from all.")]
TopP: TypeAlias = Annotated[float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens that sum to p.")]
MinP: TypeAlias = Annotated[float, typer.Option(min=0, max=1, help="Sample from tokens p times as likely as the likeliest.")]
RepetitionPenalty: TypeAlias = Annotated[float, typer.Option(min=0.01, max=100, help="Above 1: repeat less.")]
Seed: TypeAlias = Annotated[int | None, typer.Option(min=0, help="Seed of the sampling.")]
Stop: TypeAlias = Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")]

UseEngine: TypeAlias = Annotated[
    bool | None,
    typer.Option("--engine/--no-engine", help="The decode engine, or transformers' modules. Default: the engine if it can."),
]
Threads: TypeAlias = Annotated[int | None, typer.Option(min=1, max=256, help="CPU threads. Default: torch's number.")]
DType: TypeAlias = Annotated[str, typer.Option(help="Data type that the modules compute in. The engine supports auto only.")]
Device: TypeAlias = Annotated[str | None, typer.Option(help="Device of the modules, e.g. cuda. Default: cpu.")]
Rounding: TypeAlias = Annotated[
    Activations, typer.Option(help="Inputs of packed products: rounded to int8 (fast), or exact.")
]
