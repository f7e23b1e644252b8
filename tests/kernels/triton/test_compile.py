"""The kernels compile to machine code, which needs no GPU: the interpreter takes what the compiler would not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'potq[gpu]'")

SCRIPT = Path(__file__).with_name("compile_kernels.py")


OLDER = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="takes a minute: make check-deep")


@pytest.mark.parametrize("capability", [pytest.param(80, marks=OLDER), 90])
def test_they_compile(capability: int, tmp_path: Path) -> None:
    outside = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    outside["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, str(SCRIPT), str(capability)]
    done = subprocess.run(command, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
