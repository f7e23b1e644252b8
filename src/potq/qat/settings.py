"""How a model is trained quantized: where scales come from, and whether activations are rounded too."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from potq.config import Activations
from potq.validation import Strict

Scales = Literal["fixed", "searched", "learned"]


class QATSettings(Strict):
    """Settings of quantization-aware training beside the format, which is a :class:`~potq.config.PoTConfig`.

    Gradients go straight through the rounding under each (:mod:`potq.numerics.fake_quantize`); what differs are the scales.

    Attributes:
        scales: ``"fixed"``: those that training starts with (2601.02298). ``"searched"``: those of least squared error for
            the weights as they are, searched anew every ``search_every`` steps by the config's ``scale_method``. They came
            out best (docs/qat.md), most of all at 2 bits. ``"learned"``: a parameter beside the weight, the logarithm of a
            factor on the first scales, with LSQ's gradient (1902.08153); learned maxima as PAMS has them (2011.04212) are
            the same thing, a maximum being a scale times the last level.
        search_every: optimizer steps from one search to the next; one takes as long as two steps or so.
        search_until: the share of a run's steps after which scales stay: a search moves all weights of a group at once, and
            what that costs takes steps to make good (docs/qat.md).
        activations: ``"int8"`` rounds the inputs of linears as the kernels do at inference, gradients straight through
            (LLM-QAT, 2305.17888); ``"float"`` leaves them alone.

    Raises:
        ConfigError: an unknown key or word, or a value out of range.

    Example:
        >>> from potq.qat import QATSettings
        >>> settings = QATSettings(scales="searched", search_every=10, search_until=0.5)
        >>> [step for step in range(100) if settings.searches_before(step, 100)]
        [10, 20, 30, 40, 50]
    """

    scales: Scales = "searched"
    search_every: int = Field(default=32, ge=1)
    search_until: float = Field(default=0.75, ge=0, le=1)
    activations: Activations = "float"

    def searches_before(self, step: int, steps: int) -> bool:
        """Whether scales are searched anew before ``step``, from 0, of a run of ``steps``; those it starts with are new."""
        return 0 < step <= self.search_until * steps and step % self.search_every == 0
