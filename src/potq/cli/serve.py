"""``potq serve``: a model behind the OpenAI API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from potq.cli import console
from potq.cli.kernels import Activations
from potq.errors import MissingDependencyError

_LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    model: Annotated[str, typer.Argument(help="Folder (packed or not), or smollm2 packed into one.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients. Default: the folder's.", show_default=False)
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=64, help="Texts that are computed at once.")] = 16,
    waiting: Annotated[int, typer.Option(min=1, help="Texts under way or waiting, at most; more get 429.")] = 256,
    cache_mb: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Memory for keys and values, at most, in MB. Default: for full slots, a quarter of the RAM at most.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt and its text. Default: the model's.", show_default=False)
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="CPU threads. Default: torch's number.")] = None,
    activations: Annotated[
        Activations, typer.Option(help="Inputs of packed products: rounded to int8 (fast), or exact.")
    ] = Activations.int8,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="POTQ_API_KEY", help="A key that requests have to bear; may be repeated.", show_default=False),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Web pages that may use the server, or *; may be repeated.", show_default=False)
    ] = None,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Size of a request, at most, in MB.")] = 8,
    drain_seconds: Annotated[int, typer.Option(min=1, help="Time that texts have to end when the server stops.")] = 30,
) -> None:
    """Serve a model to clients of the OpenAI API, several texts at once; a page to chat with is at /.

    potq serve out --port 8000

    Ctrl-C or SIGTERM: new requests get 503, texts under way end, then the server does. A second one ends them with an error.
    """
    try:
        from potq.serve.server import Server, listen
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"potq serve needs {error.name}: pip install 'potq[serve]'") from None
    from potq.checkpoint.files import check_source
    from potq.engine.engine import Engine
    from potq.serve.service import Service
    from potq.serve.settings import ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        slots=slots,
        waiting=waiting,
        cache_bytes=None if cache_mb is None else cache_mb << 20,
        api_keys=tuple(api_key or ()),
        origins=tuple(cors_origin or ()),
        body_bytes=max_body_mb << 20,
        drain=drain_seconds,
    )
    check_source(model)
    listening = listen(settings)
    console.quiet_libraries()
    with console.status(f"loading {model}"):
        engine = Engine(model, threads=threads, context=context, activations=activations.value)
        service = Service(engine, name or Path(model).resolve().name, settings)
    if host not in _LOCAL and not settings.api_keys:
        console.note(f"anybody who reaches {host} can use the model; --api-key KEY asks for a key")
    address, found = listening.getsockname()[:2]
    told = f"{service.name} at http://{address}:{found}, the API at /v1 (Ctrl-C ends)"
    Server(service, settings, listening, lambda: console.note(told)).run()
