"""What Prometheus reads: counters and histograms of the requests, and the engine's own numbers at each look."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fastdiff.serving import Stats
from fastdiff.serving.http.jobs import Job

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds: from a digit's four steps to a large network's thousand.
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)


class Metrics:
    """The numbers of a server.

    Args:
        stats: Gives the engine's.
    """

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_EngineNumbers(stats))
        self._responses = Counter(
            "fastdiff_http_responses", "Answers by route and status.", ("route", "status"), registry=self._registry
        )
        self._outcomes = Counter(
            "fastdiff_requests", "Requests for images, by how they ended.", ("outcome",), registry=self._registry
        )
        self._seconds = Histogram(
            "fastdiff_request_seconds", "From a request to its images.", buckets=_BUCKETS, registry=self._registry
        )
        self._waiting = Histogram(
            "fastdiff_waiting_seconds",
            "From a request to the end of its first evaluation.",
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def answered(self, route: str, status: int) -> None:
        """An answer went out."""
        self._responses.labels(route, str(status)).inc()

    def refused(self, outcome: str) -> None:
        """A request for images was not taken."""
        self._outcomes.labels(outcome).inc()

    def ended(self, job: Job, outcome: str) -> None:
        """A request that was taken has ended."""
        self._outcomes.labels(outcome).inc()
        if job.started is not None:
            self._waiting.observe(job.started - job.created)
        if outcome == "done" and job.seconds is not None:
            self._seconds.observe(job.seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineNumbers(Collector):
    """The engine's numbers, read when they are asked for."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Read them."""
        stats = self._stats()
        recent = stats.recent_fill
        for name, text, value in (
            ("queued_images", "Images that wait for a slot.", stats.queued_images),
            ("running_images", "Images that have a slot.", stats.running_images),
            ("requests_in_engine", "Requests that wait or run.", stats.requests),
            ("batch_fill", "Mean fill of the last batches, 0 to 1.", sum(recent) / len(recent) if recent else 0.0),
        ):
            yield GaugeMetricFamily(f"fastdiff_{name}", text, value=value)
        for name, text, value in (
            ("images", "Images that were finished.", stats.images),
            ("batches", "Calls of the network.", stats.batches),
            ("evaluations", "Images evaluated in these calls; a guided one counts two.", stats.evaluations),
            ("network_seconds", "Of the engine's thread, in the network.", stats.seconds_network),
            ("other_seconds", "Of the engine's thread, busy outside of the network.", stats.seconds_other),
        ):
            yield CounterMetricFamily(f"fastdiff_{name}", text, value=value)
