"""A forced instruction set: with ``POTQ_CPU_ISA=avx2`` a CPU that has more stands for one that has not.

Rivals are then held to the same where they can be. torch and its libraries read variables when they are loaded, so the
package's ``__init__`` calls :func:`hold_rivals` before anything imports them; what is started from there inherits them.
"""

from __future__ import annotations

import os

VARIABLE = "POTQ_CPU_ISA"
RIVALS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
"""By instruction set: what holds torch, oneDNN, FBGEMM and MKL to it."""
COMPILER = {"avx2": "-march=x86-64-v3"}
"""By instruction set: what holds a C++ compiler to it."""


def hold_rivals() -> None:
    """Set the variables of the instruction set that is forced, if one is."""
    os.environ.update(RIVALS.get(os.environ.get(VARIABLE, ""), {}))


def forced() -> str | None:
    """The instruction set that was forced and is not the best of this CPU, or None.

    Raises:
        SystemExit: rivals cannot be held to it, or torch was loaded before they were.
    """
    from potq import native

    if not os.environ.get(VARIABLE) or native.missing() or native.isa() == native.best_isa():
        return None
    name = native.isa()
    if name not in RIVALS:
        raise SystemExit(f"speed cannot be measured with {VARIABLE}={name}: rivals are held to {', '.join(RIVALS)} alone")
    import torch

    if (found := torch.backends.cpu.get_cpu_capability()) != name.upper():
        raise SystemExit(f"{VARIABLE}={name}, but torch computes with {found}: set the variable before Python starts")
    return name


def held() -> dict[str, str]:
    """For a protocol: who is held to a forced instruction set, and who is not. Empty where none is forced."""
    name = forced()
    if name is None:
        return {}
    variables = ", ".join(f"{key}={value}" for key, value in RIVALS[name].items())
    return {
        "forced": f"{VARIABLE}={name}. Held to it: torch, oneDNN, FBGEMM and MKL ({variables}); llama.cpp by its build "
        "(xllamacpp, ik-llama-cpp-python, and the choice among POTQ_GGML's libraries). Not held, and using all that this "
        "CPU has: ONNX Runtime, and llama-cpp-python where it was built on this CPU"
    }


def compiler_flags() -> list[str]:
    """For this machine, or for what is forced."""
    name = forced()
    return [COMPILER[name] if name else "-march=native"]
