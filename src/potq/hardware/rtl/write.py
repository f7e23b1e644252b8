"""A design as a folder of SystemVerilog, with the vectors of its testbench and a description."""

from __future__ import annotations

import json
import os
from pathlib import Path

from potq.errors import CheckpointError
from potq.files import replacing, resolved
from potq.hardware.rtl import modules
from potq.hardware.rtl.design import Design
from potq.hardware.rtl.testbench import testbench, vectors_of

KINDS = {"product": modules.product, "mac": modules.mac, "dot": modules.dot, "scale": modules.scale}


def sources(design: Design) -> dict[str, str]:
    """The modules of a design by the names of their files, one a file.

    Example:
        >>> from potq import QuantScheme
        >>> from potq.hardware.rtl.design import design_of
        >>> list(sources(design_of(QuantScheme("pot3"))))
        ['pot3_g64_product.sv', 'pot3_g64_mac.sv', 'pot3_g64_dot.sv', 'pot3_g64_scale.sv']
    """
    return {f"{design.name}_{kind}.sv": build(design) for kind, build in KINDS.items()}


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder to write, links and ``~`` resolved.

    Raises:
        CheckpointError: something is in the way.
    """
    target = resolved(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder; choose another output folder")
    return target


def write(design: Design, folder: str | os.PathLike[str]) -> Path:
    """Write modules, testbench, its vectors and ``design.json``, all or nothing; returns the folder.

    Raises:
        CheckpointError: ``folder`` exists and is not empty, or cannot be written.

    Example:
        >>> from potq import QuantScheme
        >>> from potq.hardware.rtl.design import design_of
        >>> folder = write(design_of(QuantScheme("mxpot")), "rtl")
        >>> sorted(path.name for path in folder.glob("*_testbench.sv"))
        ['mxpot_g32_e8m0_testbench.sv']
    """
    target = check_folder(folder)
    vectors = vectors_of(design)
    files = {
        **sources(design),
        f"{design.name}_testbench.sv": testbench(design, vectors),
        **{f"{design.name}_{kind}.hex": found.hex() for kind, found in vectors.items()},
        "design.json": json.dumps(description(design), indent=1) + "\n",
    }
    try:
        with replacing(target) as partial:
            for name, text in files.items():
                (partial / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"writing {folder} failed ({error}); nothing was changed") from error
    return target


def description(design: Design) -> dict[str, object]:
    """Every setting and width that a program around the units has to know."""
    return {
        "name": design.name,
        "grid": design.grid.model_dump(),
        "levels": design.grid.levels,
        "structure": design.structure,
        "activation_bits": design.activation_bits,
        "group": design.group,
        "lanes": design.lanes,
        "sum_bits": design.sum_bits,
        "start": design.start,
        "scale": design.scale_dtype,
        "signed_scale": design.signed_scale,
        "shift_bits": design.shift_bits,
        "groups": design.groups,
        "total_bits": design.total_bits,
    }
