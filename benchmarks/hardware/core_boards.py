"""The cores that kernels are measured on, and how tables call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.hardware.core_goals import BARREL, IBEX, IBEX_SLOW, MULTIPLIER, SEQUENTIAL, SERIAL, SERV
from firmware.boards import BOARDS, Board
from firmware.simulation import ibex, picorv32

PICO = BOARDS["picorv32"]
_ARM = BOARDS["cortex-m3"]  # runs a Cortex-M0's instructions
_SOFT = ("-march=rv32i", "-mabi=ilp32")
CORES_BY_NAME: Mapping[str, Board] = {
    BARREL: PICO,
    SERIAL: replace(PICO, emulator=picorv32()),
    SEQUENTIAL: replace(BOARDS["picorv32-mul"], emulator=picorv32("-GBARREL=1", "-GMULTIPLIER=1")),
    MULTIPLIER: BOARDS["picorv32-mul"],
    SERV: BOARDS["serv"],
    IBEX_SLOW: replace(BOARDS["ibex"], core="rv32i", options=_SOFT, emulator=ibex("-GMULTIPLIER=0")),
    IBEX: BOARDS["ibex"],
    "Cortex-M0": replace(_ARM, core="cortex-m0", options=("-mcpu=cortex-m0", "-mthumb")),
    "Cortex-M3": _ARM,
    "Cortex-M4": BOARDS["cortex-m4"],
}
COUNTS_INSTRUCTIONS = ("Cortex-M0", "Cortex-M3", "Cortex-M4")
"""Where an emulator has no cycles."""
