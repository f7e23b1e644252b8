"""The co-processor's benchmark: what is compared."""

from __future__ import annotations

from benchmarks.common.goals import Row
from benchmarks.hardware.coprocessor_goals import CORE, advantage


def measured(scheme: str, area: float, perplexity: float) -> list[Row]:
    return [
        {"what": "system", "scheme": scheme, "cycles": 1000, "delay": 10.0, "area": area},
        {"what": "perplexity", "scheme": scheme, "effort": "fast", "perplexity": perplexity},
    ]


def test_only_what_is_as_good_as_int4_counts() -> None:
    int4, worse = measured("int4-g64-e8m0", 6e5, 40.0) + measured(CORE, 4e5, 40.0)[:1], measured("pot3-g64-e8m0", 5e5, 50.0)
    assert advantage(int4 + worse, "fast") == 0.0
    assert advantage(int4 + worse + measured("apot4-g64-e8m0", 7.5e5, 40.0), "fast") == 0.8
    assert advantage(worse, "fast") is None
    assert advantage(int4 + worse, "balanced") is None
