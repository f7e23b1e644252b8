"""``deploy/``: an image and a service, as far as they can be checked without building or starting them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from potq.cli.app import app

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "deploy" / "potq.service"
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}


def served(words: list[str]) -> dict[str, object]:
    """What ``potq serve`` understands of the words behind it; an option that it does not have is an error."""
    command: Any = typer.main.get_command(app)
    return dict(command.commands["serve"].make_context("serve", list(words)).params)


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "deploy" / "Containerfile").read_text()).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in lines]


def settings() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def test_the_image_is_built_in_order() -> None:
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    images = [rest for name, rest in found if name == "FROM"]
    assert len(images) == 2
    for image in images:
        version = re.fullmatch(r"docker\.io/library/python:3\.(\d+)-slim-bookworm( AS build)?", image)
        assert version is not None
        assert int(version[1]) >= 11  # requires-python
    for _, command in (line for line in found if line[0] == "RUN" and "apt-get install" in line[1]):
        assert "--no-install-recommends" in command
        assert "rm -rf /var/lib/apt/lists/*" in command
    assert "constraints.txt" in next(rest for name, rest in found if name == "RUN" and "pip install" in rest)


def test_the_image_serves_as_a_user_of_its_own() -> None:
    found = instructions()
    names = [name for name, _ in found]
    last = len(names) - 1 - names[::-1].index("FROM")
    assert found[names.index("USER", last)] == ("USER", "10001")
    assert names.index("USER", last) < names.index("ENTRYPOINT")
    program, command, *words = json.loads(found[names.index("ENTRYPOINT")][1])
    assert (program, command) == ("/opt/potq/bin/potq", "serve")
    assert served(words)["host"] == "0.0.0.0"
    port = served(words)["port"]
    assert ("EXPOSE", str(port)) in found
    check = found[names.index("HEALTHCHECK")][1].partition("CMD ")[2]
    python, option, script = json.loads(check)
    assert (python, option) == ("/opt/potq/bin/python", "-c")
    compile(script, "HEALTHCHECK", "exec")
    assert f"127.0.0.1:{port}/health" in script


def test_the_service_starts_what_there_is() -> None:
    program, command, *words = shlex.split(settings()["ExecStart"])
    assert (program, command) == ("/opt/potq/bin/potq", "serve")
    understood = served(words)
    assert understood["host"] == "127.0.0.1"
    drain = understood["drain_seconds"]
    assert isinstance(drain, int)
    assert int(settings()["TimeoutStopSec"]) > drain  # or texts under way would be killed


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_understands_the_service(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name  # with a program that is here
    unit.write_text(UNIT.read_text().replace("/opt/potq/bin/potq", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60)
    about = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert (done.returncode, about) == (0, [])
