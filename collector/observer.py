"""What can be seen of a running collector from outside: its gauges, and the status document.

It looks at the parts; they do not know it. Nothing here is done for an event: counters are looked at once a second, and
the queue's file when somebody asks, at most once a second.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from collector.clock import Clock
from collector.config import Config
from collector.errors import CollectorError
from collector.flusher import Flusher
from collector.observe.logs import get_logger, say_left_out, without_addresses
from collector.observe.metrics import Metrics, counts
from collector.observe.outages import Trouble
from collector.observe.status import (
    SHOWN_APPS,
    SHOWN_REFUSALS,
    AppStatus,
    History,
    Limit,
    QueueStatus,
    Refusal,
    Status,
    Totals,
    UpstreamStatus,
    problems,
    without_people,
)
from collector.queue.base import AppStats, Backend, DeadLetters
from collector.sources.datagrams import DatagramSource
from collector.sources.http import HttpSource
from collector.version import __version__

log = get_logger(__name__)

LOOK_SECONDS = 1.0
FRESH_SECONDS = 0.9
"""A status document is shown again for so long; below a second, so that who asks each second gets a new one."""

FILE_LOOKS = 5
"""The queue's file is looked at each so many seconds for the metrics' sake."""


class Observer:
    """`run` it beside the parts."""

    def __init__(
        self,
        config: Config,
        *,
        queue: Backend,
        flusher: Flusher,
        http: HttpSource,
        datagrams: Mapping[str, DatagramSource],
        clock: Clock,
        metrics: Metrics,
        why_unready: Callable[[], str | None],
    ) -> None:
        self._config = config
        self._queue = queue
        self._flusher = flusher
        self._http = http
        self._datagrams = datagrams
        self._clock = clock
        self._metrics = metrics
        self._why_unready = why_unready
        self._history = History()
        self._started = clock.monotonic()
        self._delivered = 0
        self._last_delivery_ms: int | None = None
        self._in_file = QueueStatus(queue.place)
        self._apps_in_file: list[AppStats] = []
        self._dead_letters = DeadLetters()
        self._status: Status | None = None
        self._status_until = 0.0
        self._register_gauges()

    def use_config(self, config: Config) -> None:
        """From now on its limits are shown."""
        self._config = config

    def summary(self) -> str:
        """What waits, how upstream is and when something was last delivered, in one line."""
        waiting = self._queue.waiting_events
        parts = [f"events waiting: {waiting}"]
        if waiting:
            parts[0] += f", for {self._queue.oldest_waiting_seconds():.0f} s"
        upstream = self._upstream()
        if (unready := self._why_unready()) is not None:
            parts.append(unready)
        if upstream.state == "failing":
            parts.append(f"upstream fails for {upstream.since_seconds:.0f} s: {upstream.reason}")
        if upstream.last_delivery_ms is not None:
            last = datetime.fromtimestamp(upstream.last_delivery_ms // 1000, UTC)
            parts.append(f"last delivery {last:%Y-%m-%d %H:%M:%S} UTC")
        elif self._queue.is_flusher:
            parts.append("nothing delivered yet")
        return "; ".join(parts)

    async def run(self) -> None:
        """Keeps the history until cancelled."""
        self._started = self._clock.monotonic()
        looks = 0
        while True:
            self._record()
            say_left_out()
            if looks % FILE_LOOKS == 0:
                await self._look_at_file()
            looks += 1
            await self._clock.sleep(LOOK_SECONDS)

    async def status(self) -> Status:
        """The status document, at most a second old."""
        if self._status is None or self._clock.monotonic() >= self._status_until:
            await self._look_at_file(with_letters=True)
            self._status = self._compose()
            self._status_until = self._clock.monotonic() + FRESH_SECONDS
        return self._status

    def _record(self) -> None:
        [(_, delivered)] = counts(self._metrics.delivered)
        if delivered > self._delivered:
            self._delivered, self._last_delivery_ms = delivered, self._clock.now_ms()
        self._history.record(
            self._clock.monotonic(),
            accepted=self._verdicts()["accepted"],
            delivered=delivered,
            waiting=self._queue.waiting_events,
        )

    async def _look_at_file(self, *, with_letters: bool = False) -> None:
        try:
            stats = await self._queue.stats()
            if with_letters:
                self._dead_letters = await self._queue.dead_letters() if stats.dead_events else DeadLetters()
            self._in_file, self._apps_in_file = QueueStatus.of(stats, self._in_file.path), stats.apps
        except CollectorError as error:  # the disk fails, or it is about to: others say so
            log.debug("observer.look_failed", error=str(error))

    def _compose(self) -> Status:
        apps = self._apps()
        status = Status(
            version=__version__,
            is_running=True,
            now_ms=self._clock.now_ms(),
            uptime_seconds=round(self._clock.monotonic() - self._started, 1),
            queue=self._in_file,
            upstream=self._upstream(),
            totals=self._totals(),
            rates=self._history.rates(),
            apps=apps,
            apps_left_out=max(0, len(apps) - SHOWN_APPS),
            dead_letters=without_people(self._dead_letters),
            refusals=self._refusals(),
            limits=self._limits(),
        )
        found = problems(status, why_unready=self._why_unready())  # of all apps, also of those that are not shown
        return msgspec.structs.replace(status, apps=apps[:SHOWN_APPS], problems=found)

    def _upstream(self) -> UpstreamStatus:
        url, since = self._config.delivers_to, self._flusher.outages.failing_since
        if since is None:
            if self._last_delivery_ms is None:
                return UpstreamStatus(url, "unknown")
            return UpstreamStatus(url, "ok", last_delivery_ms=self._last_delivery_ms)
        failing = [trouble for trouble in self._flusher.outages if not trouble.is_held]
        now = self._clock.monotonic()
        return UpstreamStatus(
            url,
            "failing",
            since_seconds=round(now - since, 1),
            reason=without_addresses(max(failing, key=lambda trouble: trouble.again_at).reason),
            again_in_seconds=round(max(0.0, min(trouble.again_at for trouble in failing) - now), 1),
            last_delivery_ms=self._last_delivery_ms,
        )

    def _apps(self) -> list[AppStatus]:
        """All apps, those first that somebody has to look after."""
        troubles = {trouble.app_id: trouble for trouble in self._flusher.outages}
        now = self._clock.monotonic()
        order = {"held": 0, "failing": 1}
        return sorted(
            (_app_status(app, troubles.get(app.app_id), now) for app in self._apps_in_file),
            key=lambda app: (order.get(app.state, 2), -app.waiting_events, app.app_id),
        )

    def _verdicts(self) -> dict[str, int]:
        verdicts = dict.fromkeys(("accepted", "duplicate", "rejected"), 0)
        for labels, count in counts(self._metrics.events):
            verdicts[labels["verdict"]] += count
        return verdicts

    def _totals(self) -> Totals:
        verdicts = self._verdicts()
        [(_, delivered)], [(_, buried)] = counts(self._metrics.delivered), counts(self._metrics.buried)
        return Totals(
            accepted=verdicts["accepted"],
            duplicates=verdicts["duplicate"],
            rejected=verdicts["rejected"],
            delivered=delivered,
            buried=buried,
            kernel_drops=self._kernel_drops(),
        )

    def _refusals(self) -> list[Refusal]:
        refusals = [
            Refusal(labels["source"], labels["reason"], count) for labels, count in counts(self._metrics.refusals)
        ]
        return sorted(refusals, key=lambda refusal: -refusal.count)[:SHOWN_REFUSALS]

    def _limits(self) -> list[Limit]:
        queue, http = self._config.queue, self._config.http
        waiting = self._queue.waiting_bytes + self._queue.uncommitted_bytes
        return [
            Limit("queue.max_bytes", waiting, queue.max_bytes, "bytes"),
            Limit("queue.max_uncommitted", self._queue.uncommitted_bytes, queue.max_uncommitted, "bytes"),
            Limit("http.max_held_bytes", self._http.held_bytes, http.max_held_bytes, "bytes"),
            Limit("http.max_connections", self._http.connections, http.max_connections, "connections"),
            Limit("http.max_in_flight", self._http.requests_in_flight, http.max_in_flight, "requests"),
        ]

    def _kernel_drops(self) -> int:
        return sum(source.count_kernel_drops() for source in self._datagrams.values())

    def _outage_seconds(self) -> float:
        since = self._flusher.outages.failing_since
        return 0.0 if since is None else self._clock.monotonic() - since

    def _register_gauges(self) -> None:
        gauge = self._metrics.gauge
        gauge("waiting_events", "Events that wait for delivery.", lambda: self._queue.waiting_events)
        gauge("waiting_bytes", "Bytes of these events' JSON.", lambda: self._queue.waiting_bytes)
        gauge(
            "queue_limit_bytes",
            "Bytes that may wait: queue.max_bytes. Above it new events are refused.",
            lambda: self._config.queue.max_bytes,
        )
        gauge(
            "oldest_waiting_seconds",
            "How long the oldest event that is not being delivered has waited.",
            self._queue.oldest_waiting_seconds,
        )
        gauge("in_flight_leases", "Leases that are being delivered.", lambda: self._flusher.in_flight)
        gauge("in_flight_limit", "Leases that upstream bears at one time, as seen so far.", lambda: self._flusher.limit)
        gauge("held_apps", "Apps whose events wait for a person to act.", lambda: len(self._flusher.held))
        gauge(
            "outage_seconds",
            "For how long upstream has not taken some app's events; 0 if it does.",
            self._outage_seconds,
        )
        gauge("dead_letters", "Dead letters in the queue, as of some seconds ago.", lambda: self._in_file.dead_events)
        gauge("queue_file_bytes", "Size of the queue's file, as of some seconds ago.", lambda: self._in_file.file_bytes)
        gauge(
            "queue_wal_bytes",
            "Size of the queue's write-ahead log, as of some seconds ago.",
            lambda: self._in_file.wal_bytes,
        )
        gauge(
            "remembered_keys",
            "Keys that duplicates are told by, as of some seconds ago.",
            lambda: self._in_file.remembered_keys,
        )
        gauge(
            "queue_unavailable",
            "1 while the disk (full, read-only, failing, hanging) keeps the queue from taking events, else 0.",
            lambda: self._queue.trouble is not None,
        )
        gauge(
            "uncommitted_bytes",
            "Bytes of events that wait in memory for their commit.",
            lambda: self._queue.uncommitted_bytes,
        )
        gauge("http_connections", "Connections to the HTTP source.", lambda: self._http.connections)
        gauge(
            "http_in_flight_requests",
            "Requests being stored, or received but for small ones.",
            lambda: self._http.requests_in_flight,
        )
        gauge(
            "http_held_bytes",
            "Bytes of request bodies in memory whose events are not stored yet.",
            lambda: self._http.held_bytes,
        )
        gauge(
            "datagram_held_bytes",
            "Bytes of datagrams in memory whose events are not stored yet.",
            lambda: sum(source.unstored_bytes for source in self._datagrams.values()),
        )
        self._metrics.counter(
            "udp_kernel_drops",
            "Datagrams that the kernel dropped because its receive buffer was full.",
            self._kernel_drops,
        )


def _app_status(app: AppStats, trouble: Trouble | None, now: float) -> AppStatus:
    if trouble is None:
        return AppStatus.of(app, "waiting" if app.waiting_events else "idle")
    return AppStatus.of(
        app,
        "held" if trouble.is_held else "failing",
        since_seconds=round(now - trouble.since, 1),
        reason=without_addresses(trouble.reason),
        again_in_seconds=round(max(0.0, trouble.again_at - now), 1),
    )
