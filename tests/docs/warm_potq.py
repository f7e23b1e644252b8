"""A ``potq`` that has imported everything already: a server that forks for every command.

A document's commands would otherwise spend most of their time on ``import torch``. Each still runs in a process, a folder
and an environment of its own. ``python warm_potq.py ADDRESS`` serves; ``potq`` on the documents' PATH is :data:`CLIENT`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

# without what starts threads, as pyarrow does in transformers.trainer: a fork copies locks that they may hold
IMPORTED = (
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "potq.cli.app",
    "potq.engine.engine",
    "potq.evaluate.compare",
)
SECONDS = 240  # a command; nothing else would end one that hangs, as it is no child of the shell that waits for it
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    sys.exit(int(server.makefile().readline() or 1))
"""


def serve(address: str) -> None:
    """Answer one command after the other, until the process that started this one ends it."""
    for name in IMPORTED:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads after the imports; a process that forks may have one"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            with client:
                header, streams, _, _ = socket.recv_fds(client, 8, 3)
                request = client.makefile("rb").read(int.from_bytes(header, "big"))
                child = os.fork()
                if child == 0:
                    server.close()
                    client.close()
                    _run(streams, *json.loads(request))
                for stream in streams:
                    os.close(stream)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                client.sendall(f"{status}\n".encode())


def _run(streams: list[int], words: list[str], folder: str, environment: dict[str, str]) -> None:
    """One command, in the child; it does not return."""
    signal.alarm(SECONDS)
    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["potq", *words]
        from potq.cli.app import main

        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as an interpreter shows it at its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def write_client(path: Path, address: str) -> None:
    path.write_text(CLIENT.format(python=sys.executable, address=address))
    path.chmod(0o755)


if __name__ == "__main__":
    serve(sys.argv[1])
