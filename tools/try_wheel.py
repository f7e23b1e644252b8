"""Try an installed potq, as a wheel's user would: is everything there, does it load, does a tiny model survive a round trip?

Run with a Python that has potq and its dependencies only, outside the source tree. ``--without-library`` is for the wheel
that is built where there is no compiler.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import files, version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import potq
from potq import native


def check(holds: bool, found: object) -> None:
    if not holds:
        sys.exit(f"try_wheel.py: {found}")


def check_files() -> None:
    """potq is the installed one, and brings its own library alone: libgomp is torch's."""
    place = Path(potq.__file__)
    check(place.is_relative_to(sys.prefix), f"imported from {place}, not from the environment {sys.prefix}")
    check(potq.__version__ == version("potq"), f"module {potq.__version__}, metadata {version('potq')}")
    libraries = [file.name for file in files("potq") or () if ".so" in file.name or ".dylib" in file.name]
    check(libraries in ([], ["libpotq.so"], ["libpotq.dylib"]), f"unexpected libraries: {libraries}")


def check_library() -> None:
    """The compiled library loads and, on Linux, shares torch's pool of threads."""
    check(native.missing() is None, native.missing())
    check(str(native.path()).startswith(sys.prefix), f"loaded {native.path()}")
    native.library()
    if sys.platform == "linux":
        check(native.library().potq_has_openmp() == 1, "compiled without OpenMP")
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        pools = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}
        check(len(pools) == 1, f"expected one OpenMP library in the process, found {sorted(pools)}")


def tiny_model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 96}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_key_value_heads=2, **sizes)).eval()


def check_model() -> None:
    """A quantized model computes, and its checkpoint computes the same."""
    model, ids = tiny_model(), torch.arange(12)[None]
    potq.quantize(model, potq.PoTConfig("pot4"))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        before = model(input_ids=ids).logits
        potq.save(model, Path(folder) / "packed")
        after = potq.load(Path(folder) / "packed")(input_ids=ids).logits
    check(bool(before.isfinite().all()), "logits are not finite")
    check(torch.equal(before, after), "the loaded checkpoint computes other logits")


def check_programs(names: list[str]) -> None:
    for name in names:
        program = Path(sys.prefix) / "bin" / name
        done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
        check(done.returncode == 0 and "usage" in done.stdout.lower(), f"{program} --help: {done}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-library", action="store_true", help="expect potq to compute with torch, and to say so")
    without = parser.parse_args().without_library
    check_files()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_model()
    slow = [str(warning.message) for warning in caught if "reference" in str(warning.message)]
    if without:
        check(native.path() is None, f"found {native.path()}")
        check(len(slow) == 1, f"expected one warning that torch computes, found {slow}")
    else:
        check_library()
        check(not slow, slow)
    check_programs(["potq"] if without else ["potq", "potq-run"])
    print(f"potq {potq.__version__} works: {'the torch reference' if without else native.isa()}")


if __name__ == "__main__":
    main()
