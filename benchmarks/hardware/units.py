"""The units that are compared: grids and every structure that each can have, all for groups of 64 products."""

from __future__ import annotations

from dataclasses import dataclass

from potq.hardware.rtl.design import Design, design_of
from potq.hardware.rtl.product import Structure, contenders
from potq.numerics.scheme import QuantScheme

GROUP = 64
SCHEMES = ("pot2", "pot3", "pot3s", "pot4", "mxpot", "apot3", "apot4", "mxfp4", "int2", "int3", "int4", "int8")


@dataclass(frozen=True)
class Unit:
    """A scheme's arithmetic in one structure."""

    scheme: str
    structure: Structure

    def quantization(self) -> QuantScheme:
        return QuantScheme(self.scheme, group_size=GROUP)

    def design(self, *, chained: bool = False) -> Design:
        name = f"{self.scheme}_{self.structure}".replace("-", "_")
        return design_of(self.quantization(), name=name, structure=self.structure, chained=chained)


def units() -> list[Unit]:
    """Every scheme in every structure that may be its smallest."""
    return [Unit(scheme, structure) for scheme in SCHEMES for structure in contenders(QuantScheme(scheme).grid)]
