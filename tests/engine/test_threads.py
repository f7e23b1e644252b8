"""The number of threads is torch's, whether it is loaded or not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from potq.engine.threads import default_threads

SCRIPT = """
import sys
from potq.engine.threads import default_threads
ours = default_threads()
assert "torch" not in sys.modules
import torch
print(ours, torch.get_num_threads())
"""
NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_DYNAMIC")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "1,2"},
        {"OMP_NUM_THREADS": "999"},
        {"OMP_NUM_THREADS": "none"},
        {"MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"},
    ],
    ids=str,
)
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch's numbers are MKL's")
def test_as_many_as_torch_takes(variables: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | variables
    words = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=300)
    ours, theirs = done.stdout.split()
    assert ours == theirs


def test_torch_decides_where_it_is_loaded() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 3)
    try:
        assert default_threads() == before + 3
    finally:
        torch.set_num_threads(before)
