"""What `/metrics` tells, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

__all__ = ["Metrics"]

_SECONDS = tuple(step * 10.0**power for power in range(-4, 2) for step in (1, 2, 5))
_SIZES = tuple(float(2**power) for power in range(17))


class Metrics:
    """The counters of one server. Times are in seconds."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
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
        self.cache_bytes = gauge("cache_bytes", "Memory of the answers that are kept", "model")
        self.waiting = gauge("queue_inputs", "Inputs that wait to be executed", "model")
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
        self.batch_tokens = histogram(
            "batch_tokens", "Tokens of an executed batch", "model", buckets=_SIZES
        )
        self.batch_sequences = histogram(
            "batch_sequences", "Sequences of an executed batch", "model", buckets=_SIZES[:13]
        )
        self.loaded = gauge("model_loaded", "1 for a model that answers", "model")

    def text(self) -> bytes:
        """All of them, as `content_type` says."""
        return generate_latest(self.registry)

    def forget(self, model: str) -> None:
        """Leave out what is known of a model that is gone, but for its counters."""
        for gauge in (self.cache_bytes, self.waiting):
            if (model,) in gauge._metrics:
                gauge.remove(model)
        self.loaded.labels(model).set(0)
