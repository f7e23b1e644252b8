"""Every benchmark: its results files, and the goals that their rows are judged by."""

from __future__ import annotations

from benchmarks.common.results import Benchmark
from benchmarks.decode import goals as decode
from benchmarks.export import goals as export
from benchmarks.first_hour import goals as first_hour
from benchmarks.gpu import goals as gpu
from benchmarks.hardware import coprocessor_goals as coprocessors
from benchmarks.hardware import core_goals as cores
from benchmarks.hardware import goals as hardware
from benchmarks.kernels import goals as kernels
from benchmarks.models import goals as models
from benchmarks.papers import goals as papers
from benchmarks.ptq import goals as ptq
from benchmarks.qat import goals as qat
from benchmarks.scale import goals as scale
from benchmarks.serve import goals as serve
from benchmarks.trellis import goals as trellis

BENCHMARKS: tuple[Benchmark, ...] = (
    *ptq.BENCHMARKS,
    *qat.BENCHMARKS,
    *papers.BENCHMARKS,
    *kernels.BENCHMARKS,
    *decode.BENCHMARKS,
    *export.BENCHMARKS,
    *gpu.BENCHMARKS,
    *hardware.BENCHMARKS,
    *coprocessors.BENCHMARKS,
    *cores.BENCHMARKS,
    *first_hour.BENCHMARKS,
    *models.BENCHMARKS,
    *scale.BENCHMARKS,
    *serve.BENCHMARKS,
    *trellis.BENCHMARKS,
)
