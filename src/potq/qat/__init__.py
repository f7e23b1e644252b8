"""Quantization-aware training: prepare a model, train it, convert it (:mod:`potq.qat.prepare`)."""

from potq.qat.prepare import convert, prepare, refresh_scales
from potq.qat.settings import QATSettings

__all__ = ["QATSettings", "convert", "prepare", "refresh_scales"]
