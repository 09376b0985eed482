"""The status document: what a person wants to know of a collector, in one place.

`GET /status.json` serves it, the page at `/` and `collector status` show it. It names apps and the reasons of dead
letters, and no event. Times ago and ahead are in seconds, instants in milliseconds since the epoch.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, Literal, Self

import msgspec

from collector.observe.logs import without_addresses
from collector.queue.base import AppStats, DeadLetters, QueueStats

HISTORY_SECONDS = 300
"""How far back the rates go, second by second: 12 KB of the document at most."""

RATE_SECONDS = 10
"""The present rates are means over so many seconds."""

SHOWN_APPS = 100
SHOWN_HELD = 3
SHOWN_REFUSALS = 20

NEARLY_FULL = 0.8
OLD_SECONDS = 900.0
"""Events that wait longer are said to be late although nothing fails."""


class Severity(Enum):
    """An error keeps events from being taken or delivered now; a warning is something to look into."""

    ERROR = "error"
    WARNING = "warning"


class Problem(msgspec.Struct, frozen=True):
    """One sentence about what is wrong."""

    severity: Severity
    text: str


class QueueStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The queue, over all apps. Bytes waiting are those of the events' JSON."""

    path: str
    waiting_events: int = 0
    waiting_bytes: int = 0
    oldest_age_seconds: float | None = None
    dead_events: int = 0
    remembered_keys: int = 0
    file_bytes: int = 0
    wal_bytes: int = 0

    @classmethod
    def of(cls, stats: QueueStats, path: str) -> Self:
        """What the queue itself tells."""
        return cls(
            path,
            waiting_events=stats.waiting_events,
            waiting_bytes=stats.waiting_bytes,
            oldest_age_seconds=_seconds(stats.oldest_age_ms),
            dead_events=stats.dead_events,
            remembered_keys=stats.remembered_keys,
            file_bytes=stats.file_bytes,
            wal_bytes=stats.wal_bytes,
        )


class UpstreamStatus(msgspec.Struct, frozen=True, rename="camel"):
    """How delivery goes: `failing` is no answer, or "later"; `unknown` is that nothing was delivered yet."""

    url: str
    state: Literal["unknown", "ok", "failing"]
    since_seconds: float | None = None
    reason: str | None = None
    again_in_seconds: float | None = None
    last_delivery_ms: int | None = None


AppState = Literal["idle", "waiting", "failing", "held", "unknown"]


class AppStatus(msgspec.Struct, frozen=True, rename="camel"):
    """One app: `held` waits for a person, `failing` for upstream; else it is `waiting` for its turn, or `idle`."""

    app_id: str
    state: AppState
    waiting_events: int
    waiting_bytes: int
    oldest_age_seconds: float | None
    dead_events: int
    since_seconds: float | None = None
    reason: str | None = None
    again_in_seconds: float | None = None

    @classmethod
    def of(cls, app: AppStats, state: AppState, **trouble: Any) -> Self:
        """What the queue itself tells of an app in this state, with what is known of its trouble."""
        age = _seconds(app.oldest_age_ms)
        return cls(app.app_id, state, app.waiting_events, app.waiting_bytes, age, app.dead_events, **trouble)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def without_people(letters: DeadLetters) -> DeadLetters:
    """The same for all to see: upstream's words may name whom an event is of."""
    return DeadLetters(
        [msgspec.structs.replace(each, reason=without_addresses(each.reason)) for each in letters.reasons],
        [msgspec.structs.replace(each, reason=without_addresses(each.reason)) for each in letters.latest],
    )


class Refusal(msgspec.Struct, frozen=True):
    """Requests or datagrams that a source did not take, since the start."""

    source: str
    reason: str
    count: int


class Limit(msgspec.Struct, frozen=True):
    """A limit of the configuration, by its key, and how much of it is in use."""

    key: str
    used: int
    maximum: int
    unit: Literal["bytes", "connections", "requests"]


class Totals(msgspec.Struct, frozen=True, rename="camel"):
    """Events since the start. What is accepted and not delivered or buried waits, here or from an earlier run."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    delivered: int = 0
    buried: int = 0
    kernel_drops: int = 0


class Rates(msgspec.Struct, frozen=True, rename="camel"):
    """Events a second: now, and second by second up to now, the latest last; with how many waited then."""

    accepted_now: float = 0.0
    delivered_now: float = 0.0
    accepted: list[float] = []
    delivered: list[float] = []
    waiting: list[int] = []


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """The whole document. Without a daemon there is only what the queue's files say."""

    version: str
    is_running: bool
    now_ms: int
    queue: QueueStatus
    upstream: UpstreamStatus
    uptime_seconds: float = 0.0
    problems: list[Problem] = []
    totals: Totals = Totals()
    rates: Rates = Rates()
    apps: list[AppStatus] = []
    apps_left_out: int = 0
    dead_letters: DeadLetters = DeadLetters()
    refusals: list[Refusal] = []
    limits: list[Limit] = []


class History:
    """What was counted in each of the last seconds, from totals that are looked at about once a second."""

    def __init__(self, seconds: int = HISTORY_SECONDS) -> None:
        self._accepted: deque[float] = deque(maxlen=seconds)
        self._delivered: deque[float] = deque(maxlen=seconds)
        self._waiting: deque[int] = deque(maxlen=seconds)
        self._before: tuple[float, int, int] | None = None

    def record(self, monotonic: float, *, accepted: int, delivered: int, waiting: int) -> None:
        """Adds the seconds since the last look; where these are several, with their mean."""
        if self._before is None:
            self._before = monotonic, accepted, delivered
            return
        then, accepted_then, delivered_then = self._before
        seconds = round(monotonic - then)
        if seconds < 1:
            return
        elapsed = monotonic - then
        for _ in range(min(seconds, self._accepted.maxlen or 0)):
            self._accepted.append(round((accepted - accepted_then) / elapsed, 1))
            self._delivered.append(round((delivered - delivered_then) / elapsed, 1))
            self._waiting.append(waiting)
        self._before = monotonic, accepted, delivered

    def rates(self) -> Rates:
        """All that is known."""
        return Rates(
            accepted_now=_mean_of_latest(self._accepted),
            delivered_now=_mean_of_latest(self._delivered),
            accepted=list(self._accepted),
            delivered=list(self._delivered),
            waiting=list(self._waiting),
        )


def _mean_of_latest(values: deque[float]) -> float:
    latest = list(values)[-RATE_SECONDS:]
    return round(sum(latest) / len(latest), 1) if latest else 0.0


def problems(status: Status, *, why_unready: str | None = None) -> list[Problem]:
    """What is wrong by this document, the worst first."""
    found = []
    if not status.is_running:
        found.append(Problem(Severity.ERROR, "No collector answers; this is what its queue's files say."))
    if why_unready is not None:
        found.append(Problem(Severity.ERROR, f"No events are taken: {why_unready}."))
    found += [*_delivery_problems(status), *_limit_problems(status.limits), *_losses(status)]
    age = status.queue.oldest_age_seconds
    if not found and age is not None and age > OLD_SECONDS:
        found.append(Problem(Severity.WARNING, f"The oldest event has waited for {age / 60:,.0f} minutes."))
    return sorted(found, key=lambda problem: problem.severity is Severity.WARNING)


def _delivery_problems(status: Status) -> Iterator[Problem]:
    if status.upstream.state == "failing":
        yield Problem(Severity.ERROR, f"Upstream does not take events: {status.upstream.reason}")
    held = [app for app in status.apps if app.state == "held"]
    for app in held[:SHOWN_HELD]:
        yield Problem(Severity.ERROR, f"{app.app_id} is held until somebody acts: {app.reason}")
    if len(held) > SHOWN_HELD:
        yield Problem(Severity.ERROR, f"{len(held) - SHOWN_HELD} more apps are held.")


def _limit_problems(limits: Sequence[Limit]) -> Iterator[Problem]:
    for limit in limits:
        share = limit.used / limit.maximum
        if share >= NEARLY_FULL:
            severity = Severity.ERROR if share >= 1.0 else Severity.WARNING
            yield Problem(severity, f"{limit.key} is {share:.0%} used; above it new events are refused.")


def _losses(status: Status) -> Iterator[Problem]:
    dead, drops = status.queue.dead_events, status.totals.kernel_drops
    if dead:
        letters = "event is a dead letter" if dead == 1 else "events are dead letters"
        yield Problem(Severity.WARNING, f"{dead:,} {letters}, refused by upstream for good.")
    if drops:
        yield Problem(Severity.WARNING, f"The kernel dropped {drops:,} datagrams because its buffer was full.")
