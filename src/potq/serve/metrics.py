"""What Prometheus can ask of the server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from potq.serve.pieces import Piece
    from potq.serve.worker import Worker

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds
_BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """Counters, histograms and gauges of one server. Tokens per second are ``rate(potq_tokens_total[1m])``."""

    def __init__(self, worker: Worker) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("potq_requests", "Requests by path and status.", ["path", "status"], registry=registry)
        self.prompt_tokens = Counter("potq_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.tokens = Counter("potq_tokens", "Tokens generated.", registry=registry)
        self.first = Histogram(
            "potq_time_to_first_token_seconds", "From request to first token.", buckets=_FIRST, registry=registry
        )
        self.between = Histogram(
            "potq_time_between_tokens_seconds", "Between a text's tokens.", buckets=_BETWEEN, registry=registry
        )
        gauges = {
            "potq_texts_running": ("Texts that are computed.", lambda: worker.statistics.running),
            "potq_texts_waiting": ("Texts that wait.", lambda: max(0, worker.open_texts - worker.statistics.running)),
            "potq_cache_pages_used": ("Pages of the cache in use.", lambda: worker.statistics.pages_used),
            "potq_cache_pages": ("Pages of the cache.", lambda: worker.statistics.pages_total),
            "potq_shared_tokens": (
                "Tokens of prompts not computed again.",
                lambda: worker.statistics.shared_tokens,
            ),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=registry).set_function(value)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class Clock:
    """Times of a request's texts.

    Args:
        metrics: what gets them.
        texts: how many texts the request has.
    """

    def __init__(self, metrics: Metrics, texts: int) -> None:
        self._metrics = metrics
        self._last = [time.perf_counter()] * texts
        self._begun = [False] * texts

    def tick(self, index: int, piece: Piece) -> None:
        """A piece of a text came."""
        if not piece.tokens:
            return
        now = time.perf_counter()
        passed, self._last[index] = now - self._last[index], now
        if self._begun[index]:
            self._metrics.between.observe(passed / piece.tokens)
        else:
            self._metrics.first.observe(passed)
        self._begun[index] = True
        self._metrics.tokens.inc(piece.tokens)
