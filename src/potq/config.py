"""How hard post-training quantization tries: the steps it takes and their settings, with presets by name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from potq.validation import Strict

Scope = Literal["none", "block", "model"]


class Effort(Strict):
    """The steps of post-training quantization, in the order they are taken; the defaults are none of them.

    Attributes:
        compensate: round column by column and let the columns to come make up for each error (GPTQ, 2210.17323).
        ordered: take the columns of largest second moment first, each under the scale that its group got beforehand.
        damping: what is added to the diagonal of a Hessian, as a part of its mean.
        rounds: rounds of joint refinement of a layer's scales (least squares) and codes (coordinate descent) afterwards.
        scope: what the straight-through refinement matches: the output of every ``"block"``, or the whole ``"model"``'s
            predictions (Kullback-Leibler divergence); ``"none"`` leaves it out.
        codes: whether that refinement moves codes as well as scales.
        epochs: its passes over the calibration windows.
        code_rate: its learning rate for weights, in mean steps of the layer's grid over the root of its number of inputs.
        scale_rate: its learning rate for the scales' logarithms.
    """

    compensate: bool = False
    ordered: bool = True
    damping: float = Field(default=0.01, gt=0, le=1)
    rounds: int = Field(default=0, ge=0)
    scope: Scope = "none"
    codes: bool = True
    epochs: int = Field(default=3, ge=1)
    code_rate: float = Field(default=0.15, ge=0)
    scale_rate: float = Field(default=3e-4, ge=0)

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration text."""
        return self.compensate or self.rounds > 0 or self.scope != "none"

    @property
    def name(self) -> str:
        """The preset's name, or "custom"."""
        return next((name for name, effort in EFFORTS.items() if effort == self), "custom")

    @property
    def steps(self) -> str:
        """What is done to a layer, for reports: ``gptq+descent+block``."""
        parts = ["gptq"] * self.compensate + ["descent"] * (self.rounds > 0)
        parts += [f"{self.scope}{'' if self.codes else '-scales'}"] * (self.scope != "none")
        return "+".join(parts) or "rtn"


EFFORTS = {
    "fast": Effort(),
    "gptq": Effort(compensate=True),
    "balanced": Effort(compensate=True, rounds=3),
    "best": Effort(compensate=True, rounds=3, scope="model"),
    # step 2 of 2507.11959 refines scales alone; its settings are not all given, these are ours
    "potptq": Effort(scope="block", codes=False, epochs=5),
}
"""Presets by name. ``gptq`` and ``potptq`` are there to compare with."""
