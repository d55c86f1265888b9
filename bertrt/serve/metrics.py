"""What `/metrics` tells, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from bertrt.engine import Statistics

__all__ = ["Metrics"]

_SECONDS = tuple(step * 10.0**power for power in range(-4, 2) for step in (1, 2, 5))


class Counted(Protocol):
    """What is counted by those who do it: see `bertrt.serve.served.Served`."""

    name: str

    @property
    def cache_bytes(self) -> int:
        """The memory of the answers that are kept."""
        ...

    def statistics(self) -> Statistics:
        """The engine's."""
        ...


class Metrics:
    """The counters of one server. Times are in seconds."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, served: Callable[[], Iterable[Counted]]) -> None:
        """`served` gives the models that answer."""
        self.registry = registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"bertrt_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"bertrt_{name}", help, labels, registry=registry, buckets=buckets)

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return Gauge(f"bertrt_{name}", help, labels, registry=registry)

        self.requests = counter(
            "requests", "Requests, by what they were answered with", "route", "code"
        )
        self.request_seconds = histogram(
            "request_seconds",
            "From a request's headers to its answer",
            "route",
            buckets=_SECONDS,
        )
        self.under_way = gauge("requests_under_way", "Requests that are not answered yet")
        self.inputs = counter("inputs", "Texts and pairs that were asked for", "model")
        self.tokens = counter("tokens", "Tokens that were executed, special ones included", "model")
        self.cached = counter(
            "cache_hits", "Inputs that were answered from the cache, or with an equal one", "model"
        )
        self.queue_seconds = histogram(
            "queue_seconds",
            "What a request's inputs waited to be executed",
            "model",
            buckets=_SECONDS,
        )
        self.tokenize_seconds = histogram(
            "tokenize_seconds", "Tokenization of a request's inputs", "model", buckets=_SECONDS
        )
        self.execute_seconds = histogram(
            "execute_seconds",
            "Execution of the batches that a request's inputs were in",
            "model",
            buckets=_SECONDS,
        )
        registry.register(_Engines(served))

    def text(self) -> bytes:
        """All of them, as `content_type` says."""
        return generate_latest(self.registry)


class _Engines(Collector):
    """What engines count themselves, read when it is asked for."""

    def __init__(self, served: Callable[[], Iterable[Counted]]) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        families = {
            "loaded": GaugeMetricFamily(
                "bertrt_model_loaded", "1 for a model that answers", labels=["model"]
            ),
            "cache": GaugeMetricFamily(
                "bertrt_cache_bytes", "Memory of the answers that are kept", labels=["model"]
            ),
            "waiting": GaugeMetricFamily(
                "bertrt_queue_inputs", "Inputs that wait to be executed", labels=["model"]
            ),
        }
        tokens = HistogramMetricFamily(
            "bertrt_batch_tokens", "Tokens of an executed batch", labels=["model"]
        )
        sequences = HistogramMetricFamily(
            "bertrt_batch_sequences", "Sequences of an executed batch", labels=["model"]
        )
        for served in self._served():
            label, found = [served.name], served.statistics()
            families["loaded"].add_metric(label, 1)
            families["cache"].add_metric(label, served.cache_bytes)
            families["waiting"].add_metric(label, found.waiting)
            tokens.add_metric(label, _buckets(found.by_tokens), found.tokens)
            sequences.add_metric(label, _buckets(found.by_sequences), found.sequences)
        yield from families.values()
        yield from (tokens, sequences)


def _buckets(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    """Prometheus' buckets, each with what is in the ones before it."""
    found, total = [], 0
    for power in range(17):
        total += counts.get(1 << power, 0)
        found.append((str(float(1 << power)), float(total)))
    return [*found, ("+Inf", float(sum(counts.values())))]
