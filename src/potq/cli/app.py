"""The ``potq`` command and its error handling."""

from __future__ import annotations

import sys

import typer

from potq.cli import processes
from potq.cli.chat import chat
from potq.cli.compare import compare
from potq.cli.console import error, stderr
from potq.cli.env import env
from potq.cli.evaluate import evaluate
from potq.cli.export import export
from potq.cli.generate import generate
from potq.cli.hardware import hardware
from potq.cli.inspect import inspect
from potq.cli.quantize import quantize
from potq.cli.serve import serve
from potq.cli.train import train
from potq.errors import PotqError
from potq.version import __version__

_INTERRUPTED = 130  # the status that typer exits with on Ctrl-C
_AFTERWARDS = {
    "quantize": ("no output was changed",),
    "export": ("no output was changed",),
    "train": ("no output was changed", "the same command goes on from the last checkpoint, if there is one"),
}

app = typer.Typer(
    name="potq",
    help="Power-of-two quantization for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("quantize")(quantize)
app.command("train")(train)
app.command("generate")(generate)
app.command("chat")(chat)
app.command("serve")(serve)
app.command("eval")(evaluate)
app.command("inspect")(inspect)
app.command("compare")(compare)
app.command("export")(export)
app.add_typer(hardware, name="hardware")
app.command("env")(env)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and exit."),
) -> None:
    pass


def _command() -> str:
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


def main() -> None:
    """Run the command line; potq's own errors become one message and exit status 1, an interrupt 130."""
    try:
        app()
    except PotqError as found:
        several = processes.count() > 1
        error(str(found), f" (process {processes.number()} of {processes.count()})" if several else "")
        sys.exit(1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            stderr.print("; ".join(["interrupted", *_AFTERWARDS.get(_command(), ())]))
        raise
