"""The collector's metrics, in a registry of its own, so that a host program's metrics are not touched."""

import platform
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector as Source

from collector.version import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST

# An fsync on a good disk takes 0.1 ms to 10 ms; a request to upstream takes 10 ms to 30 s.
ACKNOWLEDGEMENT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
UPSTREAM_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_BUCKETS = (1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 750.0, 999.0, 1000.0)

DELIVERY_OUTCOMES = ("delivered", "retried", "rejected", "held")
NO_ANSWER = "none"


class _Registry(CollectorRegistry):
    """Says nothing of when each series began: it doubles their number, and `process_start_time_seconds` tells."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _Read(Source):
    """A counter that somebody else counts."""

    def __init__(self, name: str, about: str, read: Callable[[], float]) -> None:
        self._name, self._about, self._read = name, about, read

    def collect(self) -> Iterable[Metric]:
        return [CounterMetricFamily(self._name, self._about, value=self._read())]

    def describe(self) -> Iterable[Metric]:
        return [CounterMetricFamily(self._name, self._about)]


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
        self.registry = _Registry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, namespace="collector", registry=self.registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, about, labels, namespace="collector", registry=self.registry, buckets=buckets)

        self.events = counter(
            "events", "Events received, by source and verdict (accepted, duplicate, rejected).", "source", "verdict"
        )
        self.unknown_fields = counter(
            "unknown_fields", "Fields of received events that were dropped, being neither known nor kept."
        )
        self.refusals = counter(
            "refusals", "Requests and datagrams refused as a whole, by source and reason.", "source", "reason"
        )
        self.acknowledgement_seconds = histogram(
            "acknowledgement_seconds",
            "Time from a post's head to its answer, which leaves when its events are on disk.",
            ACKNOWLEDGEMENT_BUCKETS,
        )
        self.deliveries = counter(
            "deliveries", "Deliveries of a batch, by outcome (delivered, retried, rejected, held).", "outcome"
        )
        for outcome in DELIVERY_OUTCOMES:
            self.deliveries.labels(outcome)
        self.delivered = counter("delivered_events", "Events that upstream took.")
        self.buried = counter(
            "buried_events", "Events that became dead letters because upstream refused them for good."
        )
        self.token_requests = counter("token_requests", "Requests for an access token, by outcome.", "outcome")
        self.passed_on = counter(
            "gateway_requests", "Requests passed on to upstream, by operation and its status.", "operation", "status"
        )
        self._commit_seconds = histogram(
            "commit_seconds", "Time of one commit of the queue, with its fsync.", COMMIT_BUCKETS
        )
        self._commit_callers = counter(
            "commit_callers", "Puts and settlements that commits served; by commit count it is the group size."
        )
        self._upstream_seconds = histogram(
            "upstream_seconds",
            "Time of one request that delivers events, by its answer's class (2xx, 3xx, 4xx, 5xx, none).",
            UPSTREAM_BUCKETS,
            "status",
        )
        self.batch_events = histogram("batch_events", "Events in one delivered request.", BATCH_BUCKETS)
        Info("build", "The collector's version, and Python's.", namespace="collector", registry=self.registry).info(
            {"version": __version__, "python": platform.python_version()}
        )

    def watch_writer(self, pid: int) -> None:
        """What the process that writes the queue takes is exported too, beside what this one takes."""
        ProcessCollector(namespace="collector_queue_writer", pid=lambda: pid, registry=self.registry)

    def observe_commit(self, seconds: float, callers: int) -> None:
        """Counts one commit and how many callers it served."""
        self._commit_seconds.observe(seconds)
        self._commit_callers.inc(callers)

    def observe_upstream(self, seconds: float, status: int | None) -> None:
        """Counts one request to upstream; None is the status of no answer."""
        self._upstream_seconds.labels(NO_ANSWER if status is None else f"{status // 100}xx").observe(seconds)

    def gauge(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Adds a gauge whose value is read when somebody looks."""
        Gauge(name, about, namespace="collector", registry=self.registry).set_function(read)

    def counter(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Adds a counter that is read when somebody looks."""
        self.registry.register(_Read(f"collector_{name}", about, read))

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


def counts(counter: Counter) -> list[tuple[dict[str, str], int]]:
    """What a counter has come to, by its labels."""
    return [
        (sample.labels, int(sample.value))
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    ]
