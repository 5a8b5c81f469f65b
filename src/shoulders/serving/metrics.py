"""What a server measures, for Prometheus, under `shoulders:`."""

import time
from collections.abc import Callable, Iterable
from typing import Any, final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from shoulders.engine.requests import Stats
from shoulders.serving.http import LEFT, About

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
REMEMBERED = 0.1  # weight of the newest request in the running mean of their seconds


@final
class Metrics:
    """Counters and histograms of requests, and the engine's numbers at the time they are read.

    Args:
        stats: returns the engine's numbers.
        scaffolds: returns the number of models that are served, and the bytes of their weights.
    """

    def __init__(self, stats: Callable[[], Stats], scaffolds: Callable[[], tuple[int, int]]) -> None:
        self._stats, self._scaffolds = stats, scaffolds
        self.registry = CollectorRegistry()
        self.mean_seconds = 1.0
        self._requests = self._made(Counter, "requests", "Requests that ended", ("scaffold", "endpoint", "status"))
        self._seconds = self._made(Histogram, "request_seconds", "Seconds of a request", ("endpoint",), buckets=SECONDS)
        self._first = self._made(
            Histogram, "time_to_first_token_seconds", "Seconds to the first token", ("scaffold",), buckets=SECONDS
        )
        self._read = self._made(Counter, "prompt_tokens", "Tokens of prompts", ("scaffold",))
        self._written = self._made(Counter, "generated_tokens", "Tokens generated", ("scaffold",))
        self.registry.register(self)

    def _made(self, kind: Any, name: str, text: str, labels: tuple[str, ...], **settings: Any) -> Any:
        return kind(f"shoulders:{name}", text, labels, registry=self.registry, **settings)

    def first_token(self, about: About) -> None:
        """Note that the first token of a request was generated, if it is not known yet."""
        if about.first_token is not None:
            return
        about.first_token = time.monotonic() - about.started
        self._first.labels(about.model).observe(about.first_token)

    def ended(self, about: About, route: str) -> None:
        """Note that a request has ended."""
        seconds = time.monotonic() - about.started
        self._requests.labels(about.model, route or "unknown", about.status or LEFT).inc()
        self._seconds.labels(route or "unknown").observe(seconds)
        if about.model:
            self._read.labels(about.model).inc(about.prompt_tokens)
            self._written.labels(about.model).inc(about.generated_tokens)
            self.mean_seconds += REMEMBERED * (seconds - self.mean_seconds)

    def text(self) -> bytes:
        """Return all metrics in the form in which Prometheus reads them."""
        return generate_latest(self.registry)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the engine is not asked before it runs."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield the engine's numbers."""
        found = self._stats()
        count, size = self._scaffolds()
        gauges = {
            "requests_running": ("Requests that run", found.running),
            "requests_waiting": ("Requests that wait", found.waiting),
            "rows_per_forward": ("Rows that share a forward, mean so far", found.passes / max(1, found.forwards)),
            "pool_bytes": ("Bytes of keys and values in use, the cache's among them", found.used_bytes),
            "pool_bytes_limit": ("Bytes of keys and values at most", found.memory_bytes),
            "cache_bytes": ("Bytes of keys and values that are kept for others", found.cache_bytes),
            "scaffolds": ("Models that are served", count),
            "scaffold_bytes": ("Bytes of the weights of all scaffolds", size),
        }
        counters = {
            "steps": ("Steps of the engine", found.steps),
            "passes": ("Passes of rows through the frozen model", found.passes),
            "forwards": ("Forwards of the frozen model, each shared by many rows", found.forwards),
            "engine_tokens": ("Tokens that the engine generated", found.tokens),
            "engine_failed": ("Requests that failed in the engine", found.failed),
            "cache_hits": ("Positions that were read from the cache", found.hits),
            "cache_misses": ("Positions that were computed", found.misses),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"shoulders:{name}", text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"shoulders:{name}", text, value=value)
