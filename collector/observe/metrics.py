"""The collector's metrics, in a registry of its own, so that a host program's metrics are not touched."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

# An fsync on a good disk takes 0.1 ms to 10 ms; a request to upstream takes 10 ms to 30 s.
COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
UPSTREAM_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_BUCKETS = (1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 750.0, 999.0, 1000.0)


class Verdicts:
    """Counts what became of one source's events."""

    def __init__(self, events: Counter, source: str) -> None:
        self._accepted = events.labels(source, "accepted")
        self._duplicates = events.labels(source, "duplicate")
        self._rejected = events.labels(source, "rejected")

    def count(self, accepted: int, duplicates: int, rejected: int) -> None:
        """So many more of each."""
        if accepted:
            self._accepted.inc(accepted)
        if duplicates:
            self._duplicates.inc(duplicates)
        if rejected:
            self._rejected.inc(rejected)


class Metrics:
    """Everything that is counted. Labels take few values: a source, a verdict, an outcome; never an app or a person."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, namespace="collector", registry=self.registry)

        self.events = counter(
            "events", "Events received, by source and verdict (accepted, duplicate, rejected).", "source", "verdict"
        )
        self.unknown_fields = counter(
            "unknown_fields", "Fields of received events that were dropped, being neither known nor kept."
        )
        self.refusals = counter("refusals", "Requests refused as a whole, by source and reason.", "source", "reason")
        self.deliveries = counter("deliveries", "Requests to upstream, by outcome.", "outcome")
        self.delivered = counter("delivered_events", "Events that upstream took.")
        self.buried = counter(
            "buried_events", "Events that became dead letters because upstream refused them for good."
        )
        self.token_requests = counter("token_requests", "Requests for an access token, by outcome.", "outcome")
        self.passed_on = counter(
            "gateway_requests", "Requests passed on to upstream, by operation and its status.", "operation", "status"
        )
        self._commit_seconds = Histogram(
            "commit_seconds",
            "Time of one commit of the queue, with its fsync.",
            namespace="collector",
            registry=self.registry,
            buckets=COMMIT_BUCKETS,
        )
        self._commit_callers = counter(
            "commit_callers", "Puts and settlements that commits served; by commit count it is the group size."
        )
        self.upstream_seconds = Histogram(
            "upstream_seconds",
            "Time of one request to upstream.",
            namespace="collector",
            registry=self.registry,
            buckets=UPSTREAM_BUCKETS,
        )
        self.batch_events = Histogram(
            "batch_events",
            "Events in one delivered request.",
            namespace="collector",
            registry=self.registry,
            buckets=BATCH_BUCKETS,
        )

    def observe_commit(self, seconds: float, callers: int) -> None:
        """Counts one commit and how many callers it served."""
        self._commit_seconds.observe(seconds)
        self._commit_callers.inc(callers)

    def gauge(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Adds a gauge whose value is read when somebody looks."""
        Gauge(name, about, namespace="collector", registry=self.registry).set_function(read)

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
