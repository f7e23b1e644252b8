"""``potq env``."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys

import pytest
import torch
import transformers

import potq
from cli_helpers import succeed
from potq import native
from potq.cli import env

compiled = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


def test_json() -> None:
    found = json.loads(succeed("env", "--json"))
    assert (found["potq"], found["python"]) == (potq.__version__, platform.python_version())
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert found["packages"]["transformers"] == transformers.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]


@compiled
def test_the_compiled_library(monkeypatch: pytest.MonkeyPatch) -> None:
    library = json.loads(succeed("env", "--json"))["library"]
    assert (library["path"], library["missing"]) == (str(native.path()), None)
    assert library["isa"] == native.isa()
    assert library["isas"] == list(native.usable_isas())
    assert f"in use: {native.isa()}" in succeed("env")
    monkeypatch.setattr(native, "missing", lambda: "it is not there; reinstall potq")
    assert "library: it is not there; reinstall potq" in succeed("env")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("matplotlib", "gguf"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    shown = succeed("env")
    assert "gguf MISSING" in shown
    assert "extra plot: matplotlib missing; pip install 'potq[plot]'" in shown
    assert "extra dev" not in shown
    assert json.loads(succeed("env", "--json"))["extras"]["plot"] == {"matplotlib": None}


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "_DRIVERS", ())
    assert "GPU: none" in succeed("env")
    monkeypatch.setattr(env, "_DRIVERS", ("/",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is a driver, but torch" in succeed("env")


def test_torch_is_not_loaded() -> None:
    script = "import sys; from potq.cli import env; env._DRIVERS = (); env.env(); print(sys.modules.keys() & {'torch'})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.endswith("set()\n")
