"""Every picture of README and docs, drawn from the committed results: ``python -m benchmarks.pictures``."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import overview
from benchmarks.common.markdown import ROOT
from benchmarks.common.results import RESULTS, read
from benchmarks.decode import plot as decode
from benchmarks.decode.goals import SPEED
from benchmarks.gpu import plot as gpu
from benchmarks.gpu.goals import KERNELS
from benchmarks.hardware import circuits_plot, core_plot
from benchmarks.hardware import plot as hardware
from benchmarks.hardware.core_goals import CORES
from benchmarks.hardware.goals import FRONTIER
from benchmarks.kernels import plot as kernels
from benchmarks.kernels.goals import CPU
from benchmarks.ptq import plot as ptq
from benchmarks.ptq.goals import TABLE
from benchmarks.qat import nanogpt_report
from benchmarks.qat import plot as qat
from benchmarks.qat.goals import NANOGPT, STEP
from benchmarks.qat.report import recovery
from benchmarks.serve import plot as serve
from benchmarks.serve.goals import SERVE
from benchmarks.trellis import plot as trellis

PICTURES = ROOT / "docs" / "pictures"
DRAWN = {
    TABLE: ptq.draw,
    NANOGPT: nanogpt_report.draw,
    STEP: qat.draw_steps,
    CPU: kernels.draw,
    SPEED: decode.draw,
    KERNELS: gpu.draw,
    FRONTIER: hardware.draw,
    CORES: core_plot.draw,
    SERVE: serve.draw,
}
"""One picture a results file, beside it."""


def drawn() -> Iterator[str]:
    for benchmark, draw in DRAWN.items():
        yield from (draw(read(path)["rows"], path.with_suffix(".png")) for path in benchmark.files())
    yield qat.draw_recovery(recovery(), RESULTS / "qat_recovery.png")
    yield overview.draw(PICTURES / "overview.png")
    yield trellis.draw(PICTURES / "trellis.svg")
    yield circuits_plot.draw(PICTURES / "circuits.svg")


def main() -> None:
    for said in drawn():
        print(said)


if __name__ == "__main__":
    main()
