"""Quantization-aware training: prepare a model, train it, convert it (:mod:`potq.qat.prepare`)."""

from potq.qat.prepare import convert, outdate_scales, prepare
from potq.qat.settings import QATSettings

__all__ = ["QATSettings", "convert", "outdate_scales", "prepare"]
