"""The gateway's Prometheus metrics, in a registry of their own. Label values are capped: beyond 1,000, `other`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MAX_LABEL_VALUES = 1000
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class LabelCap:
    """Lets the first 1,000 distinct values through; the rest are `other`, so no client can grow the registry."""

    def __init__(self, max_values: int = MAX_LABEL_VALUES) -> None:
        self._max_values = max_values
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) >= self._max_values:
            return "other"
        self._seen.add(value)
        return value


class Metrics:
    """The names of the contract; `render` is the body of `/metrics`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._models, self._versions, self._metrics = LabelCap(), LabelCap(), LabelCap()
        self._requests = Counter(
            "tandem_requests", "Completions by outcome", ("model", "version", "status"), registry=registry
        )
        self.ttft_seconds = _histogram(
            "tandem_ttft_seconds", "Streams: from the request's arrival to the first byte", registry
        )
        self.itl_seconds = _histogram("tandem_itl_seconds", "Mean gap between a stream's chunks", registry)
        self.overhead_seconds = _histogram("tandem_overhead_seconds", "Total minus waiting for the engine", registry)
        self.in_flight = Gauge("tandem_in_flight", "Completions under way", registry=registry)
        self.queue_depth = Gauge(
            "tandem_queue_depth", "Requests that wait in an engine", ("replica",), registry=registry
        )
        self.replica_up = Gauge("tandem_replica_up", "1 if the replica takes traffic", ("replica",), registry=registry)
        self._feedback = Counter("tandem_feedback", "Feedback by outcome", ("metric", "status"), registry=registry)
        self.publish_seconds = Histogram(
            "tandem_publish_seconds", "Each step of a publish", ("step",), buckets=_SECONDS, registry=registry
        )
        self.alias_generation = Gauge(
            "tandem_alias_generation", "Flips of an alias so far", ("alias",), registry=registry
        )
        self._dropped = Counter(
            "tandem_records_dropped", "Completions answered but not recorded", ("reason",), registry=registry
        )

        self.replica_ejected = Counter(
            "tandem_replica_ejected",
            "Times that a replica got no requests because it failed",
            ("replica",),
            registry=registry,
        )
        self._retries = Counter(
            "tandem_retries",
            "Requests asked of a second replica, by what the first did",
            ("reason",),
            registry=registry,
        )

    def count_request(self, model: str, version: str, status: int) -> None:
        self._requests.labels(self._models(model), self._versions(version), str(status)).inc()

    def count_feedback(self, metric: str, status: str) -> None:
        self._feedback.labels(self._metrics(metric), status).inc()

    def count_retry(self, reason: str) -> None:
        self._retries.labels(reason).inc()

    def count_dropped(self, reason: str, num: int = 1) -> None:
        self._dropped.labels(reason).inc(num)

    def render(self) -> bytes:
        return generate_latest(self.registry)


def _histogram(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, text, buckets=_SECONDS, registry=registry)
