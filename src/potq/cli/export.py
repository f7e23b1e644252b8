"""``potq export``: a packed checkpoint for other engines."""

from __future__ import annotations

import importlib.util
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from potq.cli import console
from potq.cli.kernels import Activations
from potq.cli.recipe import parse_schemes
from potq.errors import ConfigError, ExportError
from potq.numerics.scheme import PRESETS, QuantScheme

if TYPE_CHECKING:
    from potq.export.c import CReport
    from potq.export.report import ExportReport


class Format(StrEnum):
    """What can be written; the targets of ``potq.export.targets``, whose import would make ``--help`` wait for torch."""

    gguf = "gguf"
    compressed_tensors = "compressed-tensors"
    onnx = "onnx"
    c = "c"


class Core(StrEnum):
    """What a C program is made for; ``potq.hardware.kernels.Core``, whose import would make ``--help`` wait for torch."""

    rv32i = "rv32i"
    rv32im = "rv32im"
    ibex = "ibex"
    serv = "serv"
    cortex_m0 = "cortex-m0"
    cortex_m3 = "cortex-m3"
    cortex_m4 = "cortex-m4"
    generic = "generic"


class Program(NamedTuple):
    """What is asked of a C program; None is the default."""

    core: Core | None
    strict: bool
    context: int | None
    flash: int | None
    ram: int | None


_NO_PROGRAM = Program(None, False, None, None, None)
_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _bytes(text: str) -> int:
    """``"512K"`` in bytes."""
    number = text.rstrip("KMG")
    unit = _BYTES.get(text[len(number) :])
    if unit is None or not number.isdecimal() or not int(number):
        raise typer.BadParameter(f"{text!r} is no size; write bytes like 65536, 512K or 1M")
    return int(number) * unit


def export(
    model: Annotated[str | None, typer.Argument(help="A packed checkpoint folder.", show_default=False)] = None,
    output: Annotated[
        Path | None, typer.Argument(help="What to write: a file for gguf, a folder for the others.", show_default=False)
    ] = None,
    to: Annotated[Format | None, typer.Option(help="The format.", show_default=False)] = None,
    allow_8bit: Annotated[
        bool, typer.Option("--allow-8bit", help="Also write schemes that only 8-bit types hold exactly.")
    ] = False,
    activations: Annotated[
        Activations | None,
        typer.Option(
            help="For onnx: inputs of products exact (float, the default) or rounded to int8, which is many times as fast."
        ),
    ] = None,
    core: Annotated[
        Core | None,
        typer.Option(help="For c: the core whose fastest kernels are taken. Default: generic.", show_default=False),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="For c: no multiplication in products with packed weights.")
    ] = False,
    context: Annotated[
        int | None, typer.Option(help="For c: the longest text in tokens. Default: the model's.", show_default=False)
    ] = None,
    flash: Annotated[
        int | None, typer.Option(parser=_bytes, metavar="BYTES", help="For c: flash that there is, like 512K.")
    ] = None,
    ram: Annotated[
        int | None, typer.Option(parser=_bytes, metavar="BYTES", help="For c: RAM that there is, stack included.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    list_forms: Annotated[
        bool, typer.Option("--list", help="Show which schemes each format holds exactly, and in what size.")
    ] = False,
    schemes: Annotated[
        str | None, typer.Option(help="For --list: these schemes, like pot2z:group_size=row,pot3. Default: the presets.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Write a packed checkpoint for other engines, every weight equal: llama.cpp, vLLM, ONNX Runtime. Or
    write a program in C for processors without floating point.

    potq export out out.gguf --to gguf

    potq export out out-mxfp4 --to compressed-tensors

    potq export out out-onnx --to onnx

    potq export out out-c --to c --core cortex-m3 --flash 1M

    potq export --list
    """
    program = Program(core, strict, context, flash, ram)
    if list_forms:
        if model is not None:
            raise ConfigError("--list shows what is possible and takes no model; leave one of them out")
        if to is not None or activations is not None or allow_8bit or force or program != _NO_PROGRAM:
            raise ConfigError("--list shows every format, and of other options takes --schemes and --json alone")
        _list(parse_schemes(schemes) if schemes is not None else tuple(PRESETS.values()), as_json=as_json)
        return
    if schemes is not None:
        raise ConfigError("--schemes is for --list")
    if model is None or output is None or to is None:
        raise ConfigError("give a model, an output and a format: potq export MODEL OUTPUT --to gguf; or --list")
    if to is Format.c:
        if allow_8bit or activations is not None:
            raise ConfigError("--allow-8bit and --activations are not for c")
        _write_c(model, output, program, force=force, as_json=as_json)
        return
    if program != _NO_PROGRAM:
        raise ConfigError(f"--core, --strict, --context, --flash and --ram are for c, not for {to.value}")
    if activations is not None and to is not Format.onnx:
        raise ConfigError(f"--activations is for onnx; what reads {to.value} decides by itself")
    rounding = activations or Activations.float
    _write(model, output, to, activations=rounding, allow_8bit=allow_8bit, force=force, as_json=as_json)


def _list(schemes: tuple[QuantScheme, ...], *, as_json: bool) -> None:
    from potq.export.targets import TARGETS

    forms = {scheme.name: {name: _described(target.form(scheme)) for name, target in TARGETS.items()} for scheme in schemes}
    if as_json:
        console.emit_json(forms)
        return
    from rich import box
    from rich.table import Table

    table = Table(title="exact forms: type, bits per weight", title_justify="left", box=box.SIMPLE)
    for heading in ("scheme", *TARGETS):
        table.add_column(heading)
    for scheme, by_target in forms.items():
        cells = [f"{form['type']:7} {form['bits_per_weight']:g}" if form else "-" for form in by_target.values()]
        table.add_row(scheme, *cells)
    console.stdout().print(table)


def _described(form: Any) -> dict[str, Any] | None:
    return {"type": form.name, "bits_per_weight": form.bits_per_weight} if form is not None else None


def _write(
    model: str, output: Path, to: Format, *, activations: Activations, allow_8bit: bool, force: bool, as_json: bool
) -> None:
    _check(model, output, to, force=force)
    console.quiet_libraries()
    from potq.checkpoint.loading import check_language_model, load, load_tokenizer
    from potq.export.compressed_tensors import export_compressed_tensors
    from potq.export.gguf.write import export_gguf
    from potq.export.onnx.write import export_onnx
    from potq.nn.packed_model import packed_modules

    check_language_model(model, "potq export")
    with console.status(f"loading {model}"):
        tokenizer, loaded = load_tokenizer(model), load(model)  # the one that is sooner known to be missing first
    if not packed_modules(loaded):
        raise _not_packed(model)
    with console.status(f"writing {output}"):
        if to is Format.gguf:
            name = Path(model).resolve().name
            report = export_gguf(loaded, output, tokenizer, name=name, allow_8bit=allow_8bit, force=force)
        elif to is Format.onnx:
            report = export_onnx(
                loaded, output, tokenizer, activations=activations.value, allow_8bit=allow_8bit, force=force
            )
        else:
            report = export_compressed_tensors(loaded, output, tokenizer, allow_8bit=allow_8bit, force=force)
            if importlib.util.find_spec("compressed_tensors") is None:
                console.note("its reader: pip install 'potq[compressed-tensors]'")
    _show(report, as_json=as_json)


def _write_c(model: str, output: Path, program: Program, *, force: bool, as_json: bool) -> None:
    _check(model, output, Format.c, force=force)
    console.quiet_libraries()
    from potq.checkpoint.loading import load, load_tokenizer
    from potq.export.c import CExport

    with console.status(f"loading {model}"):
        tokenizer, loaded = load_tokenizer(model), load(model)
    export = CExport(
        loaded,
        tokenizer,
        core=(program.core or Core.generic).value,
        strict=program.strict,
        context=program.context,
        flash=program.flash,
        ram=program.ram,
    )
    console.note(export.report.summary())
    with console.status(f"writing {output}"):
        report = export.write(output, force=force)
    _show_c(report, as_json=as_json)


def _show_c(report: CReport, *, as_json: bool) -> None:
    if as_json:
        console.emit_json(report.model_dump(mode="json"))
        return
    console.stdout().print(f"wrote {report.path}, {report.nbytes:,} bytes of C", highlight=False, soft_wrap=True)


def _check(model: str, output: Path, to: Format, *, force: bool) -> None:
    """All that can be wrong before torch is loaded."""
    from potq.checkpoint.files import check_source, read_config
    from potq.export.onnx.packages import require_packages
    from potq.export.output import check_file
    from potq.files import check_destination

    if to is Format.gguf:
        check_file(output, force=force, suffix=".gguf")
    elif to is Format.c:
        check_destination(output, force=force, sources=[model], mark="model.h")
    else:
        check_destination(output, force=force, sources=[model])
    if to is Format.onnx:
        require_packages()
    where = check_source(model)
    if "quantization_config" not in read_config(where):
        raise _not_packed(model)


def _not_packed(model: str) -> ExportError:
    return ExportError(f"{model} is not quantized by potq; potq quantize {model} OUTPUT makes a checkpoint of it")


def _show(report: ExportReport, *, as_json: bool) -> None:
    for note in report.notes:
        console.note(note)
    if as_json:
        console.emit_json(report.to_dict())
        return
    out = console.stdout()
    out.print(report.table())
    out.print(f"wrote {report.path}; every weight is equal", highlight=False, soft_wrap=True)
