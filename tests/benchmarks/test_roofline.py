"""Samples of a profile as parts of the engine's work."""

from __future__ import annotations

import pytest

from benchmarks.kernels.roofline import shares

REPORT = """
# Overhead  Shared Object  Symbol
    50.00%  libpotq.so  [.] potq::(anonymous namespace)::multiply_chunk<potq::(anonymous namespace)::Avx2, 4, 1>
    10.00%  libpotq.so  [.] potq::(anonymous namespace)::prepare_int8<potq::(anonymous namespace)::Avx2>
     8.00%  libpotq.so  [.] potq::engine::Pool::wait
     6.00%  libpotq.so  [.] potq::engine::(anonymous namespace)::mix_vectors<6, 2>
     6.00%  libpotq.so  [.] potq::engine::(anonymous namespace)::rms_norm
    12.00%  libpotq.so  [.] potq::(anonymous namespace)::pack_row_block
     8.00%  libpython3.11.so.1.0  [.] _PyEval_EvalFrameDefault
"""


def test_shares_are_of_the_library_without_what_loads_a_model() -> None:
    expected = {"products": 50, "attention": 6, "rounding activations": 10, "waiting": 8, "other": 6}
    assert shares(REPORT) == {part: round(share / 80, 4) for part, share in expected.items()}


def test_a_profile_without_the_library_is_refused() -> None:
    with pytest.raises(SystemExit, match="no sample in the library"):
        shares(REPORT.replace("libpotq", "libother"))


def test_a_library_without_symbols_is_refused() -> None:
    with pytest.raises(SystemExit, match="no symbols"):
        shares(REPORT + "\n     4.45%  libpotq.so  [.] 0x000000000006bfe5\n")
